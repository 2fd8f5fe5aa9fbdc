"""The load-balancing loss of a mixture of experts: the model's own, in every kind of training, and nowhere else."""

import itertools

import pytest
import torch
from support import tiny_models, whole_runs
from support.batch_layouts import LAYOUTS
from support.kto_runs import kto, labelled_rows
from support.model_families import EXPERTS, PAIRS, make
from torch.optim import SGD

from dpo_lightning import UnpairedDataModule
from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.models.router_loss import RouterLoss, router_coefficient

NUMBERS = range(len(PAIRS))
KINDS = {**whole_runs.KINDS, "kto": (kto, UnpairedDataModule, labelled_rows)}


def save(folder, family="qwen2_moe", **options):
    """A folder of a tiny model with experts."""
    model = make(family, vocab_size=tiny_models.VOCAB, max_position_embeddings=256, **options)
    return tiny_models.save(folder, model, tiny_models.make_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Experts, and a config that does not ask for balance."""
    return save(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    """The same weights, and a config that asks for it."""
    return save(tmp_path_factory.mktemp("asking"), output_router_logits=True, router_aux_loss_coef=0.3)


def watched(model, batch, head=None):
    """The loss that is recorded while a batch is scored, and its gradient."""
    routers = RouterLoss(model, 1.0)
    model.zero_grad(set_to_none=True)
    routers.watch(batch.mask)
    score(model, batch, head)
    found = routers.add_to(torch.zeros(()), torch.ones(1))
    found.backward()
    return found.detach(), torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "mlp.gate" in n])


def own(model, batch):
    """What the model itself computes of a padded batch, and its gradient."""
    model.zero_grad(set_to_none=True)
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": batch.mask}
    found = model(**inputs, output_router_logits=True).aux_loss
    found.backward()
    return found.detach(), torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "mlp.gate" in n])


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("family", EXPERTS)
def test_it_is_the_models_own(family, asked):
    """In padded rows, with the head apart or not, whether the config asks for it or not; gradients of the routers."""
    model = make(family, output_router_logits=asked)
    batch = Padded().collate(PAIRS, NUMBERS)
    value, gradient = own(model, batch)
    assert gradient.abs().max() > 1e-3
    assert install(model) == ""
    for head in (None, find_head(model)):
        found, in_routers = watched(model, batch, head)
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(in_routers, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", EXPERTS)
def test_each_token_counts_once_in_every_layout(family, layout, asked):
    """Expected from the model's own routers, asked about the tokens that the layout holds, a sequence at a time."""
    model = make(family, output_router_logits=asked)
    assert install(model) == ""
    batch = LAYOUTS[layout].collate(PAIRS, NUMBERS)
    found = watched(model, batch, find_head(model))[0]
    routers = RouterLoss(model, 1.0)
    pieces = []
    for row, answers in [(row, row.answers) for row in PAIRS]:
        wholes = [[*row.prompt_ids, *answer.ids] for answer in answers]
        cut = wholes if isinstance(LAYOUTS[layout], Padded) else [ids[:-1] for ids in wholes]
        shared = 0
        if isinstance(LAYOUTS[layout], (SharedPrefix, PackedSharedPrefix)):
            alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*cut, strict=False))
            shared = len(list(alike))
        for number, ids in enumerate(cut):
            with torch.no_grad():
                logits = model.get_decoder()(torch.tensor([ids]), output_router_logits=True).router_logits
            pieces.append([layer[shared if number else 0 :] for layer in logits])
    layers = tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
    assert len(layers[0]) == int(batch.mask.sum())
    expected = routers.balance(layers, torch.ones(1, len(layers[0]), dtype=torch.bool))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_activations_that_are_computed_again_give_the_same(folder):
    model = make("mixtral")
    batch = Padded().collate(PAIRS, NUMBERS)
    expected = own(model, batch)
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = watched(model, batch, find_head(model))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_passes_without_a_gradient_are_not_counted():
    """Those of a reference that is the policy without its adapter run through the same layers."""
    model = make("olmoe")
    batch, other = Padded().collate(PAIRS[:2], NUMBERS[:2]), Padded().collate(PAIRS[2:], NUMBERS[:2])
    expected = own(model, batch)[0]
    routers = RouterLoss(model, 1.0)
    routers.watch(batch.mask)
    with torch.no_grad():
        score(model, other)
    score(model, batch)
    with torch.no_grad():
        score(model, other)
    torch.testing.assert_close(routers.add_to(torch.zeros(()), torch.ones(1)).detach(), expected)
    score(model, batch)
    with pytest.raises(AssertionError, match="0 forward passes"):
        routers.add_to(torch.zeros(()), torch.ones(1))


# In training


def train(kind, model, folder, batch_size=2, accumulate=1, rows=4, collator=None, **policy):
    make_module, data_module, make_rows = KINDS[kind]
    module = make_module(model, policy=CausalLM(str(model), **policy), optimizer=SGD, learning_rate=whole_runs.SGD_RATE)
    file = whole_runs.write_rows(folder, "train", make_rows(rows))
    held_out = whole_runs.write_rows(folder, "eval", make_rows(4, 50))
    data = data_module(file, held_out, batch_size=batch_size, max_length=64, shuffle=False, collator=collator)
    memory, _ = whole_runs.fit(module, data, folder, accumulate_grad_batches=accumulate)
    return module, memory, data.encoded["train"]


def routers_of(weights):
    return torch.cat([value.flatten() for name, value in weights.items() if "mlp.gate" in name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_coefficient_moves_the_routers(kind, folder, tmp_path):
    """TRL's was always 0: a step with it differs from one without by the coefficient times the gradient."""
    moved, logged = {}, {}
    start = dict(CausalLM(str(folder)).build().named_parameters())
    for coefficient in (0.0, 0.5, 1.0):
        module, memory, _ = train(kind, folder, tmp_path, 4, collator=Padded(), router_aux_loss_coef=coefficient)
        moved[coefficient] = routers_of(whole_runs.weights(module)) - routers_of(start).detach()
        logged[coefficient] = memory.steps[1]
    assert "train/aux_loss" not in logged[0.0]
    assert logged[0.5]["train/aux_loss"] == logged[1.0]["train/aux_loss"] > 1
    assert not any(name.startswith("eval/aux") for step in logged.values() for name in step)
    assert logged[0.0]["train/loss"] == logged[1.0]["train/loss"]
    rows = train(kind, folder, tmp_path, 4)[2]
    batch = Padded().collate(rows, range(4))
    value, gradient = own(CausalLM(str(folder)).build(), batch)
    assert logged[1.0]["train/aux_loss"] == pytest.approx(float(value), rel=1e-5)
    assert gradient.abs().max() > 1e-4
    for coefficient in (0.5, 1.0):
        added = moved[coefficient] - moved[0.0]
        torch.testing.assert_close(added, -whole_runs.SGD_RATE * coefficient * gradient, rtol=1e-3, atol=1e-7)


def test_micro_batches_are_averaged_by_their_weights(folder, tmp_path):
    """3 pairs in micro-batches of 2 and 1: a step moves by 2/3 and 1/3 of their gradients."""
    steps = {}
    start = routers_of(dict(CausalLM(str(folder)).build().named_parameters())).detach()
    for coefficient in (0.0, 1.0):
        module, memory, rows = train(
            "dpo", folder, tmp_path, 2, 2, rows=3, collator=Padded(), router_aux_loss_coef=coefficient
        )
        steps[coefficient] = routers_of(whole_runs.weights(module)) - start
    model = CausalLM(str(folder)).build()
    parts = [own(model, Padded().collate(some, range(len(some)))) for some in (rows[:2], rows[2:])]
    value, gradient = (2 / 3 * one + 1 / 3 * other for one, other in zip(*parts, strict=True))
    assert memory.curve("train/aux_loss") == [pytest.approx(float(value), rel=1e-5)]
    torch.testing.assert_close(steps[1.0] - steps[0.0], -whole_runs.SGD_RATE * gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("policy", [{}, {"gradient_checkpointing": True}, {"lora": Lora(r=2)}])
def test_it_runs_in_packed_rows(policy, folder, tmp_path, capsys):
    """With a frozen copy, and with a reference that runs through the policy's own layers."""
    _, memory, _ = train("dpo", folder, tmp_path, router_aux_loss_coef=0.1, collator=PackedSharedPrefix(), **policy)
    assert len(memory.curve("train/aux_loss")) == 2
    told = capsys.readouterr().out
    assert "router loss: 0.1 x the load-balancing loss (given)" in told
    assert "self-check: passed (starting loss 0.693147, margins 0" in told


# What counts where nothing is given


def test_the_configs_own_coefficient_counts_where_it_asks(asking, tmp_path, capsys):
    """`output_router_logits` in config.json, as in transformers; and the final model still asks."""
    (tmp_path / "a").mkdir()
    one, memory, _ = train("dpo", asking, tmp_path / "a", collator=Packed())
    assert "router loss: 0.3 x the load-balancing loss (the model config)" in capsys.readouterr().out
    (tmp_path / "b").mkdir()
    other, _, _ = train("dpo", asking, tmp_path / "b", collator=Packed(), router_aux_loss_coef=0.3)
    for name, value in whole_runs.weights(one).items():
        assert torch.equal(value, other.policy.get_parameter(name)), name
    assert len(memory.curve("train/aux_loss")) == 2
    assert one.policy.config.output_router_logits
    (tmp_path / "c").mkdir()
    none, memory, _ = train("dpo", asking, tmp_path / "c", collator=Packed(), router_aux_loss_coef=0.0)
    assert memory.curve("train/aux_loss") == []
    assert not torch.equal(routers_of(whole_runs.weights(none)), routers_of(whole_runs.weights(one)))


def test_without_a_word_there_is_none_and_that_is_said(folder, tmp_path, capsys):
    _, memory, _ = train("sft", folder, tmp_path)
    assert memory.curve("train/aux_loss") == []
    assert (
        "router loss: none (off in the model config; "
        "--model.policy.router_aux_loss_coef 0.001 adds it)" in capsys.readouterr().out
    )


# What is refused


def test_a_model_without_experts_is_refused_before_its_weights(tiny_llama, monkeypatch):
    monkeypatch.setattr("dpo_lightning.models.causal_lm.load_base", None)
    with pytest.raises(UserError, match="but llama has no routers") as told:
        whole_runs.dpo(tiny_llama, policy=CausalLM(str(tiny_llama), router_aux_loss_coef=0.01)).configure_model()
    assert told.value.code == ExitCode.CONFIG
    assert "model.policy.router_aux_loss_coef" in str(told.value)


@pytest.mark.parametrize("given", [-0.1, float("nan"), float("inf")])
def test_a_coefficient_that_is_none_is_refused(given):
    with pytest.raises(UserError, match="must be 0 or more") as told:
        router_coefficient(given, make("mixtral").config)
    assert told.value.code == ExitCode.CONFIG


def test_a_balance_that_is_not_known_is_refused(monkeypatch):
    """A model that lacks the usual parts, and one whose own loss is another."""
    model = make("mixtral")
    del model.num_experts
    with pytest.raises(UserError, match=r"load-balancing loss of MixtralForCausalLM: .*num_experts") as told:
        RouterLoss(model, 1.0)
    assert told.value.code == ExitCode.CONFIG
    monkeypatch.setattr(RouterLoss, "balance", lambda *_: torch.ones(()))
    with pytest.raises(UserError, match="load-balancing loss of OlmoeForCausalLM is not reproduced: it differs by"):
        RouterLoss(make("olmoe"), 1.0)
