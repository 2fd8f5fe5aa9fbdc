"""The reference: the policy's own start, to the last bit, in every precision, whatever was trained before."""

import shutil

import pytest
import torch
from support import short_runs, tiny_models
from torch import nn

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.losses import SimPOLoss
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model
from dpo_lightning.references import AdapterDisabled, FrozenAdapter, FrozenCopy, ReferenceFree


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """Models whose every dropout is 0.5, by name."""
    folder = tmp_path_factory.mktemp("dropping")
    llama = tiny_models.make_llama(attention_dropout=0.5)
    return {
        "llama": tiny_models.save(folder / "llama", llama, tiny_models.make_chat_tokenizer()),
        "gpt2": tiny_models.save(folder / "gpt2", tiny_models.make_gpt2(dropout=0.5), tiny_models.make_tokenizer()),
    }


@pytest.fixture(scope="module")
def sft_adapter(tiny_llama, file, tmp_path_factory):
    """An adapter that was trained before, as SFT leaves it."""
    folder = tmp_path_factory.mktemp("sft")
    made = short_runs.ready(tiny_llama, lora=Lora(r=2))
    short_runs.take_steps(made, short_runs.batch(made, file), 3)
    save_model(made.policy, made.tokenizer, folder, str(tiny_llama))
    return folder


def assert_starts_equal(made, pairs):
    """Losses of ln 2, margins of exactly 0, and yet a gradient for all that can have one."""
    assert made.training
    assert made.policy.training
    output, logps = made.compare(pairs)
    assert (output.losses - short_runs.LN2).abs().max() < 1e-6
    assert not logps.margins.any()
    assert torch.equal(logps.policy_chosen, logps.reference_chosen)
    assert torch.equal(logps.policy_rejected, logps.reference_rejected)
    assert not output.chosen_rewards.any()
    output.losses.mean().backward()
    gradients = {name: value.grad for name, value in made.policy.named_parameters() if value.requires_grad}
    assert gradients
    # A fresh adapter's A stands before a B of zeros, and gets its gradient after the first step.
    assert all(gradient.any() for name, gradient in gradients.items() if "lora_A" not in name)


# The first step


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [None, Lora(r=2, lora_dropout=0.5)])
def test_policy_and_reference_are_one_function_at_the_start(dropping, kind, lora, mixed, file):
    made = short_runs.ready(dropping[kind], lora=lora)
    assert isinstance(made.reference, AdapterDisabled if lora else FrozenCopy)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert_starts_equal(made, short_runs.batch(made, file))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lora", [None, Lora(r=2, lora_dropout=0.5)])
def test_so_they_are_with_weights_of_half_precision(dropping, lora, dtype, file):
    made = short_runs.ready(dropping["gpt2"], lora=lora, dtype=dtype)
    assert_starts_equal(made, short_runs.batch(made, file))


def test_a_frozen_copy_serves_a_new_adapter_as_well(dropping, file):
    made = short_runs.ready(dropping["llama"], FrozenCopy(), lora=Lora(r=2, lora_dropout=0.5))
    assert_starts_equal(made, short_runs.batch(made, file))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("given", [None, FrozenCopy])
def test_an_sft_adapter_starts_from_itself_and_not_from_its_base(sft_adapter, tiny_llama, file, given, mixed):
    made = short_runs.ready(sft_adapter, given and given())
    assert isinstance(made.reference, given or FrozenAdapter)
    pairs = short_runs.batch(made, file)
    base = CausalLM(str(tiny_llama)).build()
    assert not torch.allclose(score(made.policy, pairs).sums, score(base, pairs).sums, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert_starts_equal(made, pairs)


def test_switching_a_trained_adapter_off_is_refused(sft_adapter):
    with pytest.raises(UserError, match=r"leave --model.reference out") as raised:
        short_runs.ready(sft_adapter, AdapterDisabled(), lora=Lora())
    assert raised.value.code == ExitCode.CONFIG
    assert isinstance(short_runs.ready(sft_adapter, lora=Lora()).reference, FrozenAdapter)


def test_switching_off_without_an_adapter_is_refused(tiny_llama):
    with pytest.raises(UserError, match="needs a new adapter") as raised:
        short_runs.module(tiny_llama, AdapterDisabled())
    assert raised.value.code == ExitCode.CONFIG


# A new adapter, switched off


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("whole", [None, ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_without_its_adapter_the_policy_is_the_untouched_base(tied, whole, file, tmp_path):
    base = tiny_models.save(
        tmp_path, tiny_models.make_llama(tie_word_embeddings=tied), tiny_models.make_chat_tokenizer()
    )
    made = short_runs.ready(base, lora=Lora(r=2, modules_to_save=whole))
    pairs = short_runs.batch(made, file)
    expected = score(CausalLM(str(base)).build(), pairs).sums
    assert torch.equal(made.reference(made.policy, pairs).sums, expected)
    assert torch.equal(score(made.policy, pairs).sums, expected)
    short_runs.take_steps(made, pairs, 3)
    assert not torch.allclose(score(made.policy, pairs).sums, expected, atol=0.1)
    assert torch.equal(made.reference(made.policy, pairs).sums, expected)
    assert not torch.equal(score(made.policy, pairs).sums, expected)  # and the adapter is on again
    trained = [name for name, value in made.policy.named_parameters() if value.requires_grad]
    assert all("lora_" in name or "modules_to_save" in name for name in trained)


# A frozen copy


def test_a_frozen_copy_is_met_by_nothing(tiny_gpt2, file):
    made = short_runs.ready(tiny_gpt2)
    copy = made.reference._held[0]
    held = {id(value) for value in copy.parameters()}
    assert not held & {id(value) for value in made.parameters()}
    assert {name.split(".")[0] for name in made.state_dict()} == {"policy"}
    assert len(list(made.parameters())) == len(list(made.policy.parameters()))
    optimizer = made.configure_optimizers()
    in_optimizer = [value for group in optimizer.param_groups for value in group["params"]]
    assert len(in_optimizer) == len(list(made.policy.parameters()))
    assert not held & {id(value) for value in in_optimizer}
    assert not any(value.requires_grad for value in copy.parameters())
    made.train()
    assert not any(part.training for part in copy.modules())
    pairs = short_runs.batch(made, file)
    before = made.reference(made.policy, pairs)
    assert not before.sums.requires_grad
    short_runs.take_steps(made, pairs, 3)
    assert torch.equal(made.reference(made.policy, pairs).sums, before.sums)
    assert all(value.grad is None for value in copy.parameters())


def test_a_frozen_copy_follows_the_policy(tiny_llama):
    made = short_runs.ready(tiny_llama)
    copy = made.reference._held[0]
    made.to(torch.bfloat16)
    assert {value.dtype for value in copy.parameters()} == {torch.bfloat16}
    made.to("meta")
    assert {value.device.type for value in copy.parameters()} == {"meta"}


def test_another_model_as_reference(tiny_llama, file, tmp_path):
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    made = short_runs.ready(tiny_llama, FrozenCopy(path=str(other)))
    pairs = short_runs.batch(made, file)
    assert torch.equal(made.reference(made.policy, pairs).sums, score(CausalLM(str(other)).build(), pairs).sums)
    assert not made.reference.equals_start
    assert made.compare(pairs)[1].margins.all()


def test_a_reference_with_dropout_is_silent(dropping, file):
    made = short_runs.ready(dropping["gpt2"], FrozenCopy(path=str(dropping["gpt2"])))
    assert_starts_equal(made, short_runs.batch(made, file))
    assert not any(part.p for part in made.reference._held[0].modules() if isinstance(part, nn.Dropout))


def test_a_reference_with_another_tokenizer_is_refused(tiny_llama, tmp_path):
    words = tiny_models.make_chat_tokenizer()
    words.add_tokens(["<extra>"])
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(), words)
    with pytest.raises(UserError, match=r"another tokenizer than the policy at model\.reference\.path\n") as raised:
        short_runs.ready(tiny_llama, FrozenCopy(path=str(other)))
    assert raised.value.code == ExitCode.MODEL


def test_a_reference_that_embeds_fewer_ids_is_refused(tiny_llama, chat_tokenizer, tmp_path):
    small = tiny_models.save(tmp_path / "small", tiny_models.make_llama(len(chat_tokenizer) - 1), chat_tokenizer)
    with pytest.raises(UserError, match="the model has"):
        short_runs.ready(tiny_llama, FrozenCopy(path=str(small)))


# Resuming

STARTS = {
    "full": {},
    "new adapter": {"lora": Lora(r=2, modules_to_save=["embed_tokens"])},
    "new adapter, frozen copy": {"lora": Lora(r=2), "reference": FrozenCopy},
    "sft adapter, frozen copy": {"reference": FrozenCopy},
}


@pytest.mark.parametrize(
    ("start", "precision"),
    [
        ("full", "32-true"),
        ("full", "bf16-mixed"),
        ("full", "bf16-true"),  # the weights change their precision after the digest was taken
        ("new adapter", "32-true"),
        ("new adapter", "bf16-true"),
        ("new adapter, frozen copy", "32-true"),
        ("sft adapter", "32-true"),
        ("sft adapter", "bf16-true"),
        ("sft adapter, frozen copy", "32-true"),
    ],
)
def test_a_resumed_run_keeps_its_reference(start, precision, tiny_llama, sft_adapter, file, tmp_path):
    options = dict(STARTS.get(start, {}))
    reference, folder = options.pop("reference", None), sft_adapter if start.startswith("sft") else tiny_llama
    made = short_runs.module(folder, reference and reference(), **options)
    short_runs.fit(made, file, tmp_path / "first", steps=2, precision=precision)
    pairs = short_runs.batch(made, file)
    probe = made.reference(made.policy, pairs).sums
    start_digest = made.reference.digest(made.policy)
    fresh = short_runs.ready(folder, reference and reference(), **options)
    if precision == "bf16-true":
        fresh.to(torch.bfloat16)
    assert torch.equal(fresh.reference(fresh.policy, pairs).sums, probe)  # the reference of step 0
    again = short_runs.module(folder, reference and reference(), **options)
    ckpt = tmp_path / "first/checkpoints/step=2.ckpt"
    assert torch.load(ckpt, weights_only=True)["reference_digest"] == start_digest
    short_runs.fit(again, file, tmp_path / "second", steps=3, ckpt=ckpt, precision=precision)
    assert again.reference.digest(again.policy) == start_digest
    assert torch.equal(again.reference(again.policy, pairs).sums, probe)
    assert not torch.equal(score(again.policy, pairs).sums, probe)


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_a_checkpoint_with_another_reference_is_refused(lora, tiny_llama, file, tmp_path):
    made = short_runs.module(tiny_llama, lora=lora)
    short_runs.fit(made, file, tmp_path / "first", steps=1)
    ckpt = tmp_path / "first/checkpoints/step=1.ckpt"
    other = tiny_models.save(tmp_path / "other", tiny_models.make_llama(seed=1), tiny_models.make_chat_tokenizer())
    references = [(other, None), (tiny_llama, FrozenCopy(path=str(other)))]
    for folder, reference in references:
        with pytest.raises(UserError, match="another reference") as raised:
            short_runs.fit(
                short_runs.module(folder, reference, lora=lora), file, tmp_path / "second", steps=2, ckpt=ckpt
            )
        assert raised.value.code == ExitCode.CONFIG


def test_a_checkpoint_without_a_digest_is_refused(tiny_llama, file, tmp_path):
    made = short_runs.module(tiny_llama)
    short_runs.fit(made, file, tmp_path / "first", steps=1)
    ckpt = tmp_path / "first/checkpoints/step=1.ckpt"
    torch.save({k: v for k, v in torch.load(ckpt, weights_only=True).items() if k != "reference_digest"}, ckpt)
    with pytest.raises(UserError, match="another reference"):
        short_runs.fit(short_runs.module(tiny_llama), file, tmp_path / "second", steps=2, ckpt=ckpt)


# What a checkpoint holds


@pytest.mark.parametrize("lora", [None, Lora(r=4), Lora(r=4, modules_to_save=["embed_tokens"])])
def test_a_checkpoint_holds_what_is_trained_and_its_moments(lora, chat_tokenizer, file, tmp_path):
    base = tiny_models.save(tmp_path / "base", tiny_models.make_llama(hidden_size=128), chat_tokenizer)
    made = short_runs.module(base, lora=lora)
    short_runs.fit(made, file, tmp_path / "run", steps=1)
    ckpt = tmp_path / "run/checkpoints/step=1.ckpt"
    content = torch.load(ckpt, weights_only=True)["state_dict"]
    trained = [value for value in made.policy.parameters() if value.requires_grad]
    stored = {value.untyped_storage().data_ptr(): value.nbytes for value in content.values()}
    weights = sum(value.nbytes for value in trained)
    assert sum(stored.values()) == weights  # no reference, no frozen base
    assert all(name.startswith("policy.") for name in content)
    moments = 2 * weights
    overhead = 900 * 3 * len(list(made.policy.state_dict())) + 20_000  # names and zip entries
    assert weights + moments <= ckpt.stat().st_size < weights + moments + overhead
    shutil.rmtree(tmp_path / "run")


def test_no_reference_says_zeros_in_whatever_form(tiny_llama, file):
    made = short_runs.module(tiny_llama, loss=SimPOLoss())
    made.configure_model()
    assert isinstance(made.reference, ReferenceFree)
    pairs = short_runs.batch(made, file)
    found = made.reference(made.policy, pairs, statistics={"tokens"})
    assert found.tokens.shape == pairs.mask.shape
    assert not any(part.any() for part in found[:3])
