"""Weights in 4 and 8 bits on a CPU: one function in every mode, only the adapter moves, and it fits the whole base."""

import copy
from importlib import metadata

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
from peft import PeftModel
from support import short_runs, tiny_models
from support.command_line import Bench, refused
from support.precomputed import files
from torch import nn
from transformers import AutoModelForCausalLM

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora, Quantization, save_model
from dpo_lightning.models.folder_checks import EMBEDDED, check_folder
from dpo_lightning.policy_module import PolicyModule
from dpo_lightning.references import AdapterDisabled, FrozenAdapter, FrozenCopy
from dpo_lightning.references.precomputed import Precomputed

FOUR, DOUBLE, EIGHT = Quantization(), Quantization(double_quant=True), Quantization(bits=8)
EVERY = pytest.mark.parametrize("quantization", [FOUR, DOUBLE, Quantization(quant_type="fp4"), EIGHT], ids=str)
BOTH = pytest.mark.parametrize("quantization", [DOUBLE, EIGHT], ids=str)
LINEAR = {4: Linear4bit, 8: Linear8bitLt}


def quantized_layers(model, quantization):
    """Names of the layers in so many bits."""
    return {name for name, part in model.named_modules() if isinstance(part, LINEAR[quantization.bits])}


def linear_layers(folder):
    """The names of a whole model's linear layers but the head."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name for name, part in model.named_modules() if type(part) is nn.Linear and name != "lm_head"}


def ready(folder, quantization, **options):
    return short_runs.ready(folder, **{"lora": Lora(r=2), "quantization": quantization} | options)


def adapter_folder(base, file, folder):
    """A trained adapter."""
    made = short_runs.ready(base, lora=Lora(r=2))
    short_runs.take_steps(made, short_runs.batch(made, file), 2)
    folder.mkdir()
    save_model(made.policy, made.tokenizer, folder, str(base))
    return folder


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
    before = adapter_folder(tiny_llama, file, tmp_path / "adapter")
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
