"""Whether a policy without its adapter is its own start is measured; where it is not, another reference is taken."""

import pytest
import torch
from support import peft_adapters, short_runs, tiny_models

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora
from dpo_lightning.references import (
    AdapterDisabled,
    FrozenAdapter,
    FrozenCopy,
    default_reference,
    distance_from_start,
    without_adapter,
)
from dpo_lightning.references.precomputed import Precomputed


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


@pytest.fixture
def base(kind, tiny_llama, tiny_gpt2):
    """A model for an adapter of a kind; Llama's layers have no biases."""
    return tiny_gpt2 if kind == "biases" else tiny_llama


def untouched(folder, pairs):
    """What the base says."""
    return score(CausalLM(str(folder)).build(), pairs).sums


@pytest.mark.parametrize("kind", peft_adapters.PLAIN)
def test_off_a_new_adapter_is_the_untouched_base_to_the_bit(kind, tiny_llama, file, capsys):
    made = peft_adapters.ready(tiny_llama, peft_adapters.PLAIN[kind])
    assert type(made.reference) is AdapterDisabled
    assert "AdapterDisabled (with its new adapter disabled, the policy equals its start)" in capsys.readouterr().out
    assert made.reference.start_tolerance == 0
    pairs = short_runs.batch(made, file)
    expected = untouched(tiny_llama, pairs)
    assert torch.equal(made.reference(made.policy, pairs).sums, expected)
    assert not made.compare(pairs)[1].margins.any()
    short_runs.take_steps(made, pairs, 3)
    assert torch.equal(made.reference(made.policy, pairs).sums, expected)
    assert not torch.allclose(score(made.policy, pairs).sums, expected, atol=0.1)


@pytest.mark.parametrize("kind", peft_adapters.STRANGE)
def test_a_start_that_is_not_what_is_left_without_the_adapter(kind, base, file, capsys):
    """The base below PiSSA and OLoRA is what they left of it, and biases are trained in the base itself."""
    made = peft_adapters.ready(base, peft_adapters.STRANGE[kind])
    assert type(made.reference) is FrozenAdapter
    reason = "trains weights that stay active" if kind == "biases" else "log-probabilities differ by up to"
    assert reason in capsys.readouterr().out
    pairs = short_runs.batch(made, file)
    start = made.reference(made.policy, pairs).sums
    assert torch.allclose(start, untouched(base, pairs), rtol=0, atol=1e-3) == (kind != "random")
    output, logps = made.compare(pairs)
    assert (output.losses - short_runs.LN2).abs().max() < 1e-6
    assert not logps.margins.any()
    short_runs.take_steps(made, pairs, 3)
    assert torch.equal(made.reference(made.policy, pairs).sums, start)
    with without_adapter(made.policy):
        left = score(made.policy, pairs).sums
    assert not torch.allclose(left, start, atol=1e-3)


@pytest.mark.parametrize("kind", peft_adapters.STRANGE)
def test_switching_it_off_is_refused_with_the_reason(kind, base):
    with pytest.raises(UserError, match="with its adapter disabled, the policy differs from its start") as raised:
        peft_adapters.ready(base, peft_adapters.STRANGE[kind], AdapterDisabled())
    assert raised.value.code == ExitCode.CONFIG
    with pytest.raises(UserError, match="a start that remains with the adapter disabled") as raised:
        peft_adapters.module(base, peft_adapters.STRANGE[kind], Precomputed())._load()
    assert raised.value.code == ExitCode.CONFIG


@pytest.mark.parametrize("kind", ["pissa", "biases"])
def test_a_frozen_copy_holds_any_start(kind, base, file):
    made = peft_adapters.ready(base, peft_adapters.STRANGE[kind], FrozenCopy())
    pairs = short_runs.batch(made, file)
    start = made.reference(made.policy, pairs).sums
    assert not made.compare(pairs)[1].margins.any()
    short_runs.take_steps(made, pairs, 2)
    assert torch.equal(made.reference(made.policy, pairs).sums, start)


def test_a_start_up_to_rounding(tiny_llama, file):
    """It is held exactly, or switched off where that is asked for, and then not promised to the bit."""
    made = peft_adapters.ready(tiny_llama, {})
    with torch.no_grad():
        for name, value in made.policy.named_parameters():
            if "lora_B" in name:
                value.fill_(1e-8)
    assert 0 < distance_from_start(made.policy) < 1e-5
    assert type(default_reference(made.policy, made.spec).reference) is FrozenAdapter
    named = AdapterDisabled()
    named.bind(made.policy, made.spec)
    assert named.start_tolerance > 0
    pairs = short_runs.batch(made, file)
    assert torch.equal(named(made.policy, pairs).sums, untouched(tiny_llama, pairs))


def test_a_trained_adapter_without_a_folder_is_seen_as_well(tiny_llama):
    """It is measured, wherever the adapter came from."""
    made = peft_adapters.ready(tiny_llama, {})
    assert distance_from_start(made.policy) == 0
    with torch.no_grad():
        next(value for name, value in made.policy.named_parameters() if "lora_B" in name).fill_(0.1)
    assert 0.01 < distance_from_start(made.policy) < float("inf")
    with pytest.raises(UserError, match="differs from its start"):
        AdapterDisabled().bind(made.policy, made.spec)


def test_measuring_leaves_no_trace(tiny_gpt2):
    made = peft_adapters.ready(tiny_gpt2, peft_adapters.STRANGE["biases"])
    made.policy.train()
    before = {name: (id(value), value.requires_grad, value.clone()) for name, value in made.policy.named_parameters()}
    assert distance_from_start(made.policy) == float("inf")
    for name, value in made.policy.named_parameters():
        assert (id(value), value.requires_grad) == before[name][:2]
        assert torch.equal(value, before[name][2])
    assert all(part.training for part in made.policy.modules())


@pytest.mark.parametrize("kind", ["plain", "whole modules"])
def test_switching_off_leaves_frozen_what_was_frozen(kind, tiny_llama, file):
    """peft makes the whole adapter trainable when it is switched on again."""
    made = peft_adapters.ready(tiny_llama, peft_adapters.PLAIN[kind])
    for name, value in made.policy.named_parameters():
        if "layers.0" in name:
            value.requires_grad_(False)
    before = peft_adapters.flags(made.policy)
    made.reference(made.policy, short_runs.batch(made, file))
    assert peft_adapters.flags(made.policy) == before


@pytest.mark.parametrize("tied", [True, False])
def test_whole_modules_of_a_new_adapter(tied, file, tmp_path):
    """`modules_to_save` begin as copies, whose originals are there when the adapter is off."""
    base = tiny_models.save(
        tmp_path, tiny_models.make_llama(tie_word_embeddings=tied), tiny_models.make_chat_tokenizer()
    )
    made = short_runs.ready(base, lora=Lora(r=2, modules_to_save=["embed_tokens", "lm_head"]))
    assert type(made.reference) is AdapterDisabled
    pairs = short_runs.batch(made, file)
    short_runs.take_steps(made, pairs, 2)
    assert torch.equal(made.reference(made.policy, pairs).sums, untouched(base, pairs))
