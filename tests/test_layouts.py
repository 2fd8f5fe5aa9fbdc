"""Whatever the layout, a model of any family gives the same log-probabilities, gradients and training."""

import copy

import pytest
import torch
from support import short_runs, tiny_models
from support.batch_layouts import LAYOUTS, ORIGIN
from support.model_families import FAMILIES, PAIRS, make, with_adapter

from dpo_lightning.data.collate import PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.data.datamodules import PreferenceDataModule, SFTDataModule
from dpo_lightning.data.examples import EncodedAnswer
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score, token_logps
from dpo_lightning.losses import DPOLoss, IPOLoss
from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.causal_lm import Lora
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.references import AdapterDisabled, FrozenCopy
from dpo_lightning.types import PairLogps

NUMBERS = range(len(PAIRS))


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """Each layout."""
    return LAYOUTS[request.param]


def values_and_gradients(model, batch, head=None):
    """Log-probabilities of scored tokens, and the gradient of a sum in which each counts differently."""
    model.zero_grad(set_to_none=True)
    values = token_logps(model, batch, head).values
    (values * torch.linspace(-1, 1, len(values))).mean().backward()
    trained = [value for value in model.parameters() if value.requires_grad]
    return values.detach(), torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained]
    )


def assert_all_layouts_agree(model, base, checkpointing=False):
    """With a model that is switched on the way; expected is what its own attention gives in padded rows."""
    values, gradients = values_and_gradients(model, Padded().collate(PAIRS, NUMBERS))
    assert install(base) == ""
    if checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    head = find_head(model)
    assert head is not None
    for name, layout in LAYOUTS.items():
        batch = layout.collate(PAIRS, NUMBERS)
        for parts in (None, head):
            found, in_weights = values_and_gradients(model, batch, parts)
            assert (found - values).abs().max() < 1e-5, name
            assert (in_weights - gradients).abs().max() < 1e-5 * gradients.abs().max(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_logps_and_gradients(family):
    model = make(family)
    assert_all_layouts_agree(model, model)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
@pytest.mark.parametrize("family", FAMILIES)
def test_logps_and_gradients_of_an_adapter(family):
    model = make(family)
    assert_all_layouts_agree(with_adapter(model), model)


@pytest.mark.parametrize("family", FAMILIES)
def test_logps_and_gradients_that_are_computed_again(family):
    model, calls = make(family), []
    model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(0))
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    queries = layers[0].attn.c_attn if family == "gpt2" else layers[0].self_attn.q_proj
    queries.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_all_layouts_agree(model, model, checkpointing=True)
    assert calls[-3:] == [0, 1, 1]  # the layer ran again in the backward pass


# What the comparisons above are there to find


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rejected_answer_that_saw_the_chosen_one_would_show(family):
    model = make(family)
    assert install(model) == ""
    batch = SharedPrefix().collate(PAIRS, NUMBERS)
    one = tuple(tree._replace(branches=(sum(tree.branches),), numbers=tree.numbers[:1]) for tree in batch.trees)
    with torch.no_grad():
        off = (token_logps(model, batch).values - token_logps(model, batch._replace(trees=one)).values).abs()
    rejected = torch.isin(batch.sequence_ids, torch.tensor([4, 5, 6]))  # the fourth's chosen branch is empty
    assert off[~rejected].max() < 1e-5
    assert off[rejected].max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_that_are_not_reset_would_show(family):
    model = make(family)
    assert install(model) == ""
    batch = PackedSharedPrefix().collate(PAIRS[:1], [0])
    along = torch.arange(batch.position_ids.numel())[None]
    with torch.no_grad():
        off = token_logps(model, batch).values - token_logps(model, batch._replace(position_ids=along)).values
    assert off[batch.sequence_ids == 0].abs().max() < 1e-5
    assert off[batch.sequence_ids == 1].abs().max() > 0.01


# Neighbours


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama"])
def test_a_pair_is_the_same_alone_and_in_company(family, layout):
    model = make(family)
    assert install(model) == ""
    with torch.no_grad():
        together = score(model, layout.collate(PAIRS, NUMBERS))
        for k, row in enumerate(PAIRS):
            alone = score(model, layout.collate([row], [k]))
            assert alone.sums.tolist() == pytest.approx(together.sums[[k, len(PAIRS) + k]].tolist(), abs=2e-5)
            assert alone.lengths.tolist() == together.lengths[[k, len(PAIRS) + k]].tolist()


def rescored(row):
    """The same tokens with the prompt scored as well."""
    before = [True] * len(row.prompt_ids)
    answers = (EncodedAnswer([*row.prompt_ids, *a.ids], before + list(a.scored)) for a in row.answers)
    return EncodedPair(ORIGIN, [], tuple(answers))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scoring_the_shared_prompt_cancels_in_dpo_and_not_in_a_mean_per_token(family, layout):
    model, reference = make(family), make("llama", intermediate_size=32)
    both = []
    with torch.no_grad():
        assert install(model) == install(reference) == ""
        for rows in (PAIRS, [rescored(row) for row in PAIRS]):
            batch = layout.collate(rows, NUMBERS)
            both.append(PairLogps.of(score(model, batch), score(reference, batch)))
    assert torch.allclose(DPOLoss()(both[0]).losses, DPOLoss()(both[1]).losses, atol=1e-4)
    assert not torch.allclose(IPOLoss()(both[0]).losses, IPOLoss()(both[1]).losses, atol=1e-2)


# Training


def trained(family, layout, steps=8):
    """The loss before each of some steps of DPO."""
    policy = make(family)
    assert install(policy) == ""
    reference = copy.deepcopy(policy).requires_grad_(False)
    head, other = find_head(policy), find_head(reference)
    optimizer, losses = torch.optim.AdamW(policy.parameters(), lr=1e-3), []
    batch = layout.collate(PAIRS, NUMBERS)
    for _ in range(steps):
        with torch.no_grad():
            expected = score(reference, batch, other)
        loss = DPOLoss(0.1)(PairLogps.of(score(policy, batch, head), expected)).losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_steps_are_the_same_without_padding(family):
    padded, packed = trained(family, Padded()), trained(family, PackedSharedPrefix())
    assert packed == pytest.approx(padded, abs=1e-5)
    assert padded[0] == pytest.approx(short_runs.LN2, abs=1e-7)
    assert padded[-1] < padded[0] - 0.01


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs whose answers begin alike or not."""
    same = {"chosen": "It is 46, or so.", "rejected": "It is 46, and not 47, they say."}
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl", **same)


@pytest.fixture(scope="module")
def tiny_gemma(tmp_path_factory):
    """The folder of a Gemma-2-type model, whose attention and logits are capped."""
    model = make("gemma2", vocab_size=tiny_models.VOCAB, max_position_embeddings=256)
    return tiny_models.save(tmp_path_factory.mktemp("gemma"), model, tiny_models.make_chat_tokenizer())


def in_layout(made, file, layout):
    """The first rows of a file as a batch of a layout."""
    data = PreferenceDataModule(train=str(file), batch_size=1, max_length=128, collator=layout)
    data.prepare("fit", made)
    data.choose_collator(made.takes_trees())
    return data.collator([(row, index) for index, row in enumerate(data.encoded["train"][:4])])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("lora", [None, Lora(r=2, lora_dropout=0.5)])
@pytest.mark.parametrize("folder", ["tiny_llama", "tiny_gpt2", "tiny_gemma"])
def test_a_run_starts_at_ln_2_with_margins_of_exactly_0(folder, lora, mixed, layout, file, request):
    made = short_runs.ready(request.getfixturevalue(folder), lora=lora)
    assert isinstance(made.reference, AdapterDisabled if lora else FrozenCopy)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output, logps = made.compare(in_layout(made, file, layout))
    zeros = PairLogps(*torch.zeros(4, 4), logps.chosen_lengths, logps.rejected_lengths)
    assert torch.equal(output.losses, DPOLoss()(zeros).losses)
    assert output.losses.tolist() == pytest.approx([short_runs.LN2] * 4, abs=1e-7)
    assert torch.equal(logps.policy_chosen, logps.reference_chosen)
    assert torch.equal(logps.policy_rejected, logps.reference_rejected)
    assert not logps.margins.any()
    assert not output.chosen_rewards.any()


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_a_run_takes_the_layout_that_its_model_does(attention, tiny_llama, file, tmp_path, capsys):
    data = PreferenceDataModule(train=str(file), eval=str(file), batch_size=4, max_length=128, allow="leak")
    made = short_runs.module(tiny_llama, attention=attention)
    runner = short_runs.fit(made, file, tmp_path, data=data, enable_checkpointing=False)
    assert type(data.collator) is (PackedSharedPrefix if attention == "auto" else Padded)
    runner.validate(made, datamodule=data, verbose=False)
    assert "self-check: passed (starting loss 0.693147, margins 0, tokens sound)" in capsys.readouterr().out


def test_a_run_in_any_layout_gives_the_same_loss(tiny_llama, file, tmp_path):
    losses = {}
    for name, each in LAYOUTS.items():
        data = PreferenceDataModule(
            train=str(file), eval=str(file), batch_size=4, max_length=128, collator=each, allow="leak"
        )
        made = short_runs.module(tiny_llama)
        runner = short_runs.fit(made, file, tmp_path / name, steps=3, data=data, enable_checkpointing=False)
        assert data.collator is each
        losses[name] = runner.validate(made, datamodule=data, verbose=False)[0]["eval/loss"]
    assert list(losses.values()) == pytest.approx([losses["padded"]] * len(LAYOUTS), abs=1e-4)
    assert abs(losses["padded"] - short_runs.LN2) > 0.01


@pytest.mark.parametrize("kind", [PreferenceDataModule, SFTDataModule])
@pytest.mark.parametrize("name", ["packed", "shared prefix", "packed shared prefix"])
def test_a_layout_that_the_model_does_not_take_is_refused(kind, name):
    data = kind(collator=LAYOUTS[name])
    data.choose_collator(takes_trees=True)
    assert data.collator is LAYOUTS[name]
    with pytest.raises(
        UserError, match=f"does not take {type(LAYOUTS[name]).__name__} batches at data.collator"
    ) as told:
        data.choose_collator(takes_trees=False)
    assert told.value.code == ExitCode.MODEL
    assert "--data.collator Padded" in told.value.fix


def test_so_it_is_in_a_run_whose_reference_does_not_take_it(tiny_llama, file, tmp_path):
    """Both models see the same batch."""
    made = short_runs.module(tiny_llama)
    made.configure_model()
    assert made.takes_trees()
    made.reference._held[0].set_attn_implementation("sdpa")
    assert not made.takes_trees()
    data = PreferenceDataModule(train=str(file), batch_size=4, max_length=128, collator=PackedSharedPrefix())
    with pytest.raises(UserError, match="does not take PackedSharedPrefix") as told:
        short_runs.fit(made, file, tmp_path, data=data, enable_checkpointing=False)
    assert told.value.code == ExitCode.MODEL
