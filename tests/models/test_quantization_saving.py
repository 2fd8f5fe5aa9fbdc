"""Weights in 4 and 8 bits: what one run saves loads in another, and its adapter on the whole base as well."""

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from peft import PeftModel
from support import short_runs, tiny_models
from support.precomputed import files
from support.quantized import BOTH, DOUBLE, quantized_layers, ready
from transformers import AutoModelForCausalLM

from dpo_lightning.errors import UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model
from dpo_lightning.models.folder_checks import EMBEDDED
from dpo_lightning.references.precomputed import Precomputed

# What is kept


@BOTH
def test_the_adapter_loads_on_the_whole_base(quantization, tiny_llama, file, tmp_path):
    made = ready(tiny_llama, quantization)
    pairs = short_runs.batch(made, file)
    short_runs.take_steps(made, pairs, 2)
    folder = tmp_path / "saved"
    folder.mkdir()
    save_model(made.policy, made.tokenizer, folder, str(tiny_llama))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(folder)).eval()
    trained = {name: value for name, value in made.policy.named_parameters() if value.requires_grad}
    there = dict(plain.named_parameters())
    assert trained
    assert all(torch.equal(there[name], value) for name, value in trained.items())
    assert CausalLM(str(folder)).base_path() == str(tiny_llama)
    again = CausalLM(str(folder), quantization=quantization).build().eval()
    assert torch.equal(score(again, pairs).sums, score(made.policy, pairs).sums)
    CausalLM(str(folder)).build()  # the digest of the base is that of the whole weights


@BOTH
def test_a_run_goes_on_as_if_it_had_not_stopped(quantization, tiny_llama, file, tmp_path):
    """The checkpoint holds the adapter and neither weights nor scales of the base."""
    ends = []
    for name, until in (("whole", [4]), ("parts", [2, 4])):
        for steps in until:
            torch.manual_seed(0)
            made = short_runs.module(tiny_llama, lora=Lora(r=2), quantization=quantization)
            ckpt = tmp_path / name / "checkpoints" / "step=2.ckpt" if steps != until[0] else None
            short_runs.fit(made, file, tmp_path / name, steps, ckpt)
        ends.append({n: v.detach().clone() for n, v in made.policy.named_parameters() if v.requires_grad})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    held = torch.load(tmp_path / "whole" / "checkpoints" / "step=2.ckpt", weights_only=True)["state_dict"]
    assert held
    assert all("lora_" in name for name in held)


@pytest.mark.usefixtures("place")
def test_a_file_of_a_reference_in_other_bits_is_refused(tiny_llama, file, tmp_path):
    stored = tmp_path / "reference.safetensors"
    for quantization in (None, DOUBLE):
        made = short_runs.module(tiny_llama, Precomputed(str(stored)), lora=Lora(r=2), quantization=quantization)
        if quantization is None:
            short_runs.fit(made, file, tmp_path, enable_checkpointing=False)
            continue
        with pytest.raises(UserError, match="quantization: the file has none, this run"):
            short_runs.fit(made, file, tmp_path, enable_checkpointing=False)


@pytest.mark.usefixtures("place")
@BOTH
def test_a_precomputed_reference_is_quantized(quantization, tiny_llama, file, tmp_path):
    """Its values are those of the live one, whether the policy's own base or a named model gives them."""
    for other in (None, str(tiny_llama)):
        made = short_runs.module(tiny_llama, Precomputed(model=other), lora=Lora(r=2), quantization=quantization)
        short_runs.fit(made, file, tmp_path, steps=1, enable_checkpointing=False)
        live = ready(tiny_llama, quantization)
        pairs = short_runs.batch(live, file)
        expected = live.reference(live.policy, pairs).sums
        found = made.reference(made.policy, pairs).sums
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert len(files()) == 1


# Optimizers


@pytest.mark.parametrize("kind", [AdamW8bit, PagedAdamW8bit])
def test_an_optimizer_in_eight_bits_trains_and_goes_on(kind, tiny_llama, file, tmp_path):
    """Its states are in 8 bits where a tensor has 4096 values, and come back out of a checkpoint."""
    ends = []
    folder = tiny_models.save(
        tmp_path / "wide", tiny_models.make_llama(hidden_size=64), tiny_models.make_chat_tokenizer()
    )
    for name, until in (("whole", [4]), ("parts", [2, 4])):
        for steps in until:
            torch.manual_seed(0)
            made = short_runs.module(folder, lora=Lora(r=64), quantization=DOUBLE)
            made.optimizer = lambda values, rate: kind(values, lr=rate)
            ckpt = tmp_path / name / "checkpoints" / "step=2.ckpt" if steps != until[0] else None
            trainer = short_runs.fit(made, file, tmp_path / name, steps, ckpt)
        state = trainer.optimizers[0].state
        kinds = {state[value]["state1"].dtype for value in made.policy.parameters() if value.requires_grad}
        assert kinds == {torch.uint8, torch.float32}
        ends.append({n: v.detach().clone() for n, v in made.policy.named_parameters() if v.requires_grad})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


# The real model


@pytest.mark.slow
def test_a_step_of_the_real_model_in_four_bits(tmp_path):
    from support.whole_runs import preference_rows, write_rows

    root = short_runs.Path(__file__).parents[2] / EMBEDDED
    file = short_runs.Path(write_rows(tmp_path, "pairs", preference_rows(4)))
    made = short_runs.module(root, lora=Lora(), quantization=DOUBLE, gradient_checkpointing=True)
    made.configure_model()
    assert len(quantized_layers(made.policy, DOUBLE)) == 210
    pairs = short_runs.batch(made, file, rows=2)
    losses = made.compare(pairs)[0].losses
    assert torch.equal(losses, torch.full_like(losses, short_runs.LN2))
    started = score(made.policy, pairs).sums.detach()
    losses.mean().backward()
    for name, value in made.policy.named_parameters():
        assert (value.grad is not None and bool(value.grad.any())) == ("lora_B" in name), name
    with torch.no_grad():
        for value in made.policy.parameters():
            if value.grad is not None:
                value -= 1e-3 * value.grad.sign()
    folder = tmp_path / "saved"
    folder.mkdir()
    save_model(made.policy, made.tokenizer, folder, str(root))
    base = AutoModelForCausalLM.from_pretrained(root)
    before = score(base, pairs).sums
    plain = PeftModel.from_pretrained(base, str(folder)).eval()
    there = dict(plain.named_parameters())
    assert all(torch.equal(there[name], value) for name, value in made.policy.named_parameters() if value.requires_grad)
    for ends, starts in ((score(made.policy, pairs).sums, started), (score(plain, pairs).sums, before)):
        chosen, rejected = (ends - starts).chunk(2)
        assert float((chosen - rejected).min()) > 1  # what was learnt below 4 bits holds on the whole base
