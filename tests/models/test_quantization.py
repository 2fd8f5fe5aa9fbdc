"""Weights in 4 and 8 bits on a CPU: one function in every mode, and only the adapter moves."""

import copy
from importlib import metadata

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from support import short_runs
from support.command_line import Bench, refused
from support.quantized import BOTH, DOUBLE, EIGHT, FOUR, LINEAR, quantized_layers, ready
from torch import nn
from transformers import AutoModelForCausalLM

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization
from dpo_lightning.models.folder_checks import check_folder
from dpo_lightning.policy_module import PolicyModule
from dpo_lightning.references import AdapterDisabled, FrozenAdapter, FrozenCopy

EVERY = pytest.mark.parametrize("quantization", [FOUR, DOUBLE, Quantization(quant_type="fp4"), EIGHT], ids=str)


def linear_layers(folder):
    """The names of a whole model's linear layers but the head."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name for name, part in model.named_modules() if type(part) is nn.Linear and name != "lm_head"}


# What is loaded


@EVERY
def test_all_linear_layers_but_the_head_are_quantized(quantization, tiny_llama):
    policy = CausalLM(str(tiny_llama), lora=Lora(r=2), quantization=quantization).build()
    found = {name.removesuffix(".base_layer") for name in quantized_layers(policy.get_base_model(), quantization)}
    assert found == linear_layers(tiny_llama)
    assert len(found) == 14
    for name, value in policy.named_parameters():
        inside = name.endswith("base_layer.weight")
        assert value.dtype == ({4: torch.uint8, 8: torch.int8}[quantization.bits] if inside else torch.float32), name
        assert value.requires_grad == ("lora_" in name), name


@EVERY
def test_values_are_near_those_of_the_whole_model(quantization, tiny_llama, file):
    made = ready(tiny_llama, quantization)
    pairs = short_runs.batch(made, file)
    found = score(made.policy, pairs).sums
    expected = score(AutoModelForCausalLM.from_pretrained(tiny_llama), pairs).sums
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0)


@EVERY
def test_trees_are_computed(quantization, tiny_llama):
    """Half-precision products would hide whether a model computes the same in packed rows; they are set after that."""
    assert ready(tiny_llama, quantization).takes_trees()
    if quantization.bits == 4:
        half = Quantization(compute_dtype="bfloat16")
        made = ready(tiny_llama, half)
        assert made.takes_trees()
        layers = [part for part in made.policy.modules() if isinstance(part, Linear4bit)]
        assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


@BOTH
def test_a_pass_in_eval_mode_changes_nothing(quantization, tiny_llama, file):
    """Else weights are repacked for inference for good, and train mode is another function."""
    made = ready(tiny_llama, quantization)
    pairs = short_runs.batch(made, file)
    training = score(made.policy, pairs).sums.detach()
    made.policy.eval()
    with torch.no_grad():
        evaluated = score(made.policy, pairs).sums
    copied = copy.deepcopy(made.policy).eval()
    made.policy.train()
    assert torch.equal(evaluated, training)
    with torch.no_grad():
        assert torch.equal(score(copied, pairs).sums, training)
    short_runs.take_steps(made, pairs, 2)
    assert all(value.grad.any() for value in made.policy.parameters() if value.requires_grad)


# What is trained


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "init_lora_weights": "gaussian"}])
@BOTH
def test_only_the_adapter_moves_and_all_of_it(quantization, options, checkpointing, tiny_llama, file):
    made = ready(tiny_llama, quantization, lora=Lora(r=2, **options), gradient_checkpointing=checkpointing)
    pairs = short_runs.batch(made, file)
    losses = made.compare(pairs)[0].losses
    assert torch.equal(losses, torch.full_like(losses, short_runs.LN2))
    before = {name: value.detach().clone() for name, value in made.policy.named_parameters()}
    short_runs.take_steps(made, pairs, 1)
    moved = {name for name, value in made.policy.named_parameters() if not torch.equal(value, before[name])}
    assert {name for name in before if "lora_B" in name} <= moved
    short_runs.take_steps(made, pairs, 1)
    for name, value in made.policy.named_parameters():
        assert torch.equal(value, before[name]) != value.requires_grad, name
        assert (value.grad is not None and bool(value.grad.any())) == value.requires_grad, name
    assert sum("lora_magnitude" in name for name in before) == (14 if "use_dora" in options else 0)


@BOTH
def test_checkpointing_changes_no_number(quantization, tiny_llama, file):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        made = ready(tiny_llama, quantization, gradient_checkpointing=checkpointing)
        pairs = short_runs.batch(made, file)
        short_runs.take_steps(made, pairs, 1)
        made.policy.zero_grad()
        made.compare(pairs)[0].losses.mean().backward()
        gradients.append({name: p.grad for name, p in made.policy.named_parameters() if p.requires_grad})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-6)


@BOTH
def test_both_models_are_quantized(quantization, tiny_llama, file, tmp_path):
    """Below a new adapter and one that was trained before, as a frozen copy, and as another model."""
    new = ready(tiny_llama, quantization)
    assert isinstance(new.reference, AdapterDisabled)
    assert len(quantized_layers(new.policy, quantization)) == 14
    with new.reference.as_model(new.policy) as model:
        assert len(quantized_layers(model, quantization)) == 14
    before = short_runs.adapter_folder(tiny_llama, file, tmp_path / "adapter")
    further = ready(before, quantization, lora=None)
    assert isinstance(further.reference, FrozenAdapter)
    copied = ready(before, quantization, lora=None, reference=FrozenCopy())
    named = ready(tiny_llama, quantization, reference=FrozenCopy(str(tiny_llama)))  # the base, as the policy still is
    for made in (further, copied, named):
        assert len(quantized_layers(made.policy, quantization)) == 14
        with made.reference.as_model(made.policy) as model:
            assert (model is made.policy) == (made is further)
            assert len(quantized_layers(model, quantization)) == 14
            assert made is further or not any(value.requires_grad for value in model.parameters())
        losses = made.compare(short_runs.batch(made, file))[0].losses
        assert torch.equal(losses, torch.full_like(losses, short_runs.LN2))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@BOTH
def test_every_precision_trains(quantization, precision, tiny_llama, file, tmp_path):
    """Moving a module to another precision leaves quantized weights as they are; products follow it."""
    made = short_runs.module(tiny_llama, lora=Lora(r=2), quantization=quantization)
    short_runs.fit(made, file, tmp_path, precision=precision, enable_checkpointing=False)
    layers = [part for part in made.policy.modules() if isinstance(part, LINEAR[quantization.bits])]
    assert len(layers) == 14
    assert not any(part.weight.is_floating_point() for part in layers)
    if quantization.bits == 4:
        wanted = torch.float32 if precision == "32-true" else torch.bfloat16
        assert {part.compute_dtype for part in layers} == {wanted}
    assert all(value.any() for name, value in made.policy.named_parameters() if "lora_B" in name)


# What is refused


@BOTH
def test_quantized_weights_are_not_trained_themselves(quantization, tiny_llama, tmp_path):
    with pytest.raises(UserError, match="quantized weights cannot be trained") as refusal:
        PolicyModule(CausalLM(str(tiny_llama), quantization=quantization), 1e-4)
    assert refusal.value.code == ExitCode.CONFIG
    bench = Bench(tmp_path, tiny_llama)
    refused(bench.fit("--model.policy.quantization.bits", quantization.bits), 64, "--model.policy.lora.r 16")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dtype": "bfloat16"}, "have to be float32"),
        ({"lora": Lora(init_lora_weights="pissa")}, "pissa needs unquantized base weights"),
        ({"lora": Lora(init_lora_weights="olora")}, "olora needs unquantized base weights"),
        ({"lora": Lora(init_lora_weights="mica")}, "mica needs unquantized base weights"),
        ({"lora": Lora(init_lora_weights="orthogonal")}, "orthogonal needs unquantized base weights"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(options, complaint):
    with pytest.raises(UserError, match=complaint):
        CausalLM("somewhere", quantization=FOUR, **options)
    CausalLM("somewhere", **options)


@pytest.mark.parametrize("options", [{"quant_type": "fp4"}, {"double_quant": True}, {"compute_dtype": "bfloat16"}])
def test_options_of_four_bits_are_not_taken_with_eight(options):
    with pytest.raises(UserError, match="applies to 4 bits only"):
        Quantization(bits=8, **options)
    Quantization(bits=4, **options)


@pytest.mark.parametrize("version", ["0.43.1", "0.50.1", None])
def test_an_old_or_missing_bitsandbytes_is_one_error(version, tiny_llama, monkeypatch):
    real = metadata.version

    def changed(name):
        if name == "bitsandbytes" and version is None:
            raise metadata.PackageNotFoundError(name)
        return version if name == "bitsandbytes" else real(name)

    monkeypatch.setattr(metadata, "version", changed)
    with pytest.raises(UserError, match=r"quantized weights need bitsandbytes>=0\.50\.2") as refusal:
        CausalLM(str(tiny_llama), lora=Lora(r=2), quantization=FOUR).build()
    assert (version or "not installed") in str(refusal.value)
    assert "pip install 'bitsandbytes>=0.50.2'" in refusal.value.fix


def test_a_folder_of_quantized_weights_is_refused(tiny_llama, tmp_path):
    """What is trained on them could be merged into nothing else, and they would be trained as if whole."""
    model = CausalLM(str(tiny_llama), lora=Lora(r=2), quantization=FOUR).build().unload()
    model.save_pretrained(tmp_path / "quantized")
    with pytest.raises(UserError, match="stored quantized") as refusal:
        check_folder(str(tmp_path / "quantized"))
    assert refusal.value.code == ExitCode.MODEL


# The command line


def test_the_command_line_takes_it_all(tiny_llama, tmp_path):
    bench = Bench(tmp_path, tiny_llama)
    ran = bench.fit(
        *bench.overlay("model: {init_args: {optimizer: {class_path: bitsandbytes.optim.PagedAdamW8bit}}}"),
        *("--model.policy.lora.r", "2", "--model.policy.quantization.bits", "4"),
        *("--model.policy.quantization.double_quant", "true", "--trainer.max_steps", "1"),
    )
    assert ran.code == 0, ran
    assert "self-check: passed (starting loss 0.693147, margins 0" in ran.out
    assert "optimizer: its states are not paged" in ran.out
    assert "kernels-community" not in ran.out + ran.err
    card = (tmp_path / "run" / "final_model" / "README.md").read_text()
    assert "| the base while training | 4 bits nf4, scales quantized, computed in float32 |" in card
    refused(bench.fit("--model.policy.quantization.bit", "4"), 64, "did you mean model.policy.quantization.bits?")
    refused(bench.fit("--model.policy.quantization.bits", "3", "--model.policy.lora.r", "2"), 64, "one of 4, 8")
