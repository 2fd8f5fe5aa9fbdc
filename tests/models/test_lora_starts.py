"""What an adapter can begin as, and that it is saved as what belongs to the untouched base."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import short_runs, tiny_models
from support.command_line import Bench, refused
from transformers import AutoModelForCausalLM

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.logps import score
from dpo_lightning.models.causal_lm import CausalLM, Lora, save_model
from dpo_lightning.references import FrozenCopy

STARTS = [True, "gaussian", "orthogonal", "mica", "olora", "pissa", "pissa_niter_4"]
TAKEN_OUT = ["olora", "pissa", "pissa_niter_4"]
KINDS = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


def trained(folder, file, lora, steps=2):
    """A policy after some steps against a copy of its start, and the pairs."""
    made = short_runs.ready(folder, reference=FrozenCopy(), lora=lora)
    pairs = short_runs.batch(made, file)
    short_runs.take_steps(made, pairs, steps)
    return made, pairs


def saved(made, folder, base):
    folder.mkdir()
    save_model(made.policy, made.tokenizer, folder, str(base))
    return folder


@pytest.mark.parametrize("start", STARTS)
def test_every_start_is_the_model_itself(start, tiny_llama, file):
    """Also with what was taken out of the base, in which the adapter now is."""
    made = short_runs.ready(tiny_llama, reference=FrozenCopy(), lora=Lora(r=2, init_lora_weights=start))
    pairs = short_runs.batch(made, file)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.testing.assert_close(score(made.policy, pairs).sums, score(plain, pairs).sums, rtol=0, atol=1e-4)
    with made.policy.disable_adapter():
        base = score(made.policy, pairs).sums
    same = torch.allclose(base, score(plain, pairs).sums, rtol=0, atol=1e-4)
    assert same == (start not in TAKEN_OUT)


@pytest.mark.parametrize(
    ("start", "kind"), [(start, kind) for start in STARTS for kind in KINDS if (start, kind) != ("mica", "dora")]
)
def test_a_saved_adapter_fits_the_untouched_base(start, kind, tiny_llama, file, tmp_path):
    """peft's own conversion leaves magnitudes out, and without any the base would lack what was taken out."""
    lora = Lora(r=4, init_lora_weights=start, **KINDS[kind])  # of 2, twice and squared are the same
    made, pairs = trained(tiny_llama, file, lora)
    expected = score(made.policy, pairs).sums
    folder = saved(made, tmp_path / "saved", tiny_llama)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    before = score(base, pairs).sums
    plain = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(score(plain, pairs).sums, expected, rtol=0, atol=1e-4)
    assert float((expected - before).abs().max()) > 0.1
    with plain.disable_adapter():
        assert torch.equal(score(plain, pairs).sums, before)
    again = CausalLM(str(folder)).build().eval()
    torch.testing.assert_close(score(again, pairs).sums, expected, rtol=0, atol=1e-4)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == (8 if start in TAKEN_OUT else 4)
    assert config["init_lora_weights"] == (True if start in TAKEN_OUT else start)


def test_saving_leaves_the_policy_as_it_is(tiny_llama, file, tmp_path):
    """A run saves more than once."""
    made, pairs = trained(tiny_llama, file, Lora(r=2, init_lora_weights="pissa"))
    expected = score(made.policy, pairs).sums
    first, second = (saved(made, tmp_path / name, tiny_llama) for name in ("one", "two"))
    assert torch.equal(score(made.policy, pairs).sums, expected)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_second_stage_starts_where_the_first_ended(tiny_llama, file, tmp_path):
    made, pairs = trained(tiny_llama, file, Lora(r=2, init_lora_weights="pissa"))
    one = saved(made, tmp_path / "one", tiny_llama)
    second = short_runs.ready(one)
    losses = second.compare(pairs)[0].losses
    assert torch.equal(losses, torch.full_like(losses, short_runs.LN2))
    torch.testing.assert_close(score(second.policy, pairs).sums, score(made.policy, pairs).sums, rtol=0, atol=1e-4)
    short_runs.take_steps(second, pairs, 2)
    two = saved(second, tmp_path / "two", tiny_llama)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(two)).eval()
    torch.testing.assert_close(score(plain, pairs).sums, score(second.policy, pairs).sums, rtol=0, atol=1e-4)


def test_a_start_that_is_drawn_leaves_the_same_base_in_every_run(tiny_llama):
    """A checkpoint holds the adapter: the base that it goes on with is made again."""
    bases = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        policy = CausalLM(str(tiny_llama), lora=Lora(r=2, init_lora_weights="pissa_niter_2")).build()
        after = torch.rand(())
        torch.manual_seed(seed)
        CausalLM(str(tiny_llama)).build()
        assert torch.equal(after, torch.rand(()))  # and the run's own random numbers are left alone
        bases.append([value for name, value in policy.named_parameters() if "base_layer" in name])
    assert all(map(torch.equal, *bases))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_every_part_of_an_adapter_moves(options, checkpointing, tiny_llama, file):
    """Matrices, magnitudes, whole modules: after two steps each value's tensor is another one, and the base is not."""
    made = short_runs.ready(
        tiny_llama, reference=FrozenCopy(), lora=Lora(r=2, **options), gradient_checkpointing=checkpointing
    )
    before = {name: value.detach().clone() for name, value in made.policy.named_parameters()}
    short_runs.take_steps(made, short_runs.batch(made, file), 2)
    for name, value in made.policy.named_parameters():
        adapted = "lora_" in name or "modules_to_save" in name
        assert (value.requires_grad, torch.equal(value, before[name])) == (adapted, not adapted), name
    magnitudes = [name for name in before if "lora_magnitude_vector" in name]
    assert len(magnitudes) == (14 if "use_dora" in options else 0)


def test_dora_in_half_precision_is_refused(tiny_llama, file, tmp_path):
    """A magnitude of 5 has steps of 1/32 in bfloat16, an optimizer's step is some 1e-4: it would never move."""
    made = short_runs.module(tiny_llama, lora=Lora(r=2, use_dora=True))
    with pytest.raises(UserError, match="updates of its magnitudes would be rounded to 0") as refusal:
        short_runs.fit(made, file, tmp_path, precision="bf16-true", enable_checkpointing=False)
    assert refusal.value.code == ExitCode.CONFIG
    assert "bf16-mixed" in refusal.value.fix


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"init_lora_weights": False}, "random noise to the model"),
        ({"init_lora_weights": "pisa"}, "is unknown"),
        ({"init_lora_weights": "pissa_niter_0"}, "is unknown"),
        ({"init_lora_weights": "eva"}, "needs the rows"),
        ({"init_lora_weights": "loftq"}, "needs a quantization of its own"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "must be even"),
        ({"use_dora": True, "init_lora_weights": "mica"}, "cannot be combined with mica"),
        ({"r": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, complaint):
    with pytest.raises(UserError, match=complaint) as refusal:
        Lora(**options)
    name = "r" if "even" in complaint else next(iter(options))
    assert refusal.value.problems[0].where == f"model.policy.lora.{name}"
    assert f"--model.policy.lora.{name}" in refusal.value.fix


@pytest.mark.parametrize(
    ("kind", "start", "r"),
    [(tiny_models.make_llama, start, 64) for start in ("mica", "pissa", "olora")]
    + [(tiny_models.make_gpt2, "olora", 2)],
)
def test_a_start_that_does_not_fit_the_layers_is_refused(kind, start, r, tmp_path):
    """More directions than a layer has, and layers whose weights peft forgets to turn."""
    folder = tiny_models.save(tmp_path / "model", kind(), tiny_models.make_chat_tokenizer())
    with pytest.raises(UserError, match="does not fit the model") as refusal:
        CausalLM(str(folder), lora=Lora(r=r, init_lora_weights=start)).build()
    assert refusal.value.code == ExitCode.CONFIG


def test_the_command_line_knows_the_starts(tiny_llama, tmp_path):
    bench = Bench(tmp_path, tiny_llama)
    ran = bench.fit("--model.policy.lora.init_lora_weights", "svd", "--model.policy.lora.r", "2")
    refused(ran, 64, "model.policy.lora.init_lora_weights", "pissa_niter_4")
    flags = ("--model.policy.lora.init_lora_weights", "pissa", "--model.policy.lora.r", "2")
    ran = bench.fit(*flags, "--model.reference", "FrozenCopy", "--trainer.max_steps", "1")
    assert ran.code == 0, ran
    assert "which includes the part that was subtracted" in ran.out
    assert "self-check: passed" in ran.out


@pytest.mark.parametrize("start", TAKEN_OUT)
@pytest.mark.parametrize(
    ("tied", "targets", "named"),
    [
        (True, ["q_proj", "lm_head"], "lm_head"),
        (True, ["q_proj", "embed_tokens"], "embed_tokens"),
        (False, ["q_proj", "embed_tokens"], "embed_tokens"),
        (True, "(?!.*proj).*lm_head", "lm_head"),
        (False, ["q_proj", "lm_head"], None),
    ],
)
def test_nothing_is_taken_out_of_shared_weights_and_embeddings(start, tied, targets, named, tmp_path):
    """The other module would lack it as well, and the saved adapter could not put it back."""
    folder = tiny_models.save(
        tmp_path / "model", tiny_models.make_llama(tie_word_embeddings=tied), tiny_models.make_chat_tokenizer()
    )
    builder = CausalLM(str(folder), lora=Lora(r=2, init_lora_weights=start, target_modules=targets))
    if named is None:
        builder.build()
        return
    with pytest.raises(UserError, match=f"cannot change {named}") as refusal:
        builder.build()
    assert refusal.value.code == ExitCode.CONFIG
    assert refusal.value.problems[0].where == "model.policy.lora.target_modules"
    assert "leave lm_head and embed_tokens out of target_modules" in refusal.value.fix
    CausalLM(str(folder), lora=Lora(r=2, target_modules=targets)).build()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target_modules": "("}, "does not fit the model"),
        ({"target_modules": ["nothing"]}, "does not fit the model"),
        ({"modules_to_save": [""]}, "no module ''"),
        ({"modules_to_save": ["head"]}, "no module head"),
        ({"modules_to_save": ["lm_head", "tokens"]}, "no module tokens"),
    ],
)
def test_names_of_no_module_are_refused(options, complaint, tiny_llama):
    with pytest.raises(UserError, match=complaint) as refusal:
        CausalLM(str(tiny_llama), lora=Lora(r=2, **options)).build()
    assert refusal.value.code == ExitCode.CONFIG


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (tiny_models.make_llama, "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        (tiny_models.make_gpt2, "c_attn, c_fc, c_proj"),
    ],
)
def test_a_refusal_names_the_models_own_layers(kind, layers, tmp_path):
    """Not what peft has put into it before it gave up."""
    folder = tiny_models.save(tmp_path / "model", kind(), tiny_models.make_chat_tokenizer())
    with pytest.raises(UserError) as refusal:
        CausalLM(str(folder), lora=Lora(r=64, init_lora_weights="mica")).build()
    assert refusal.value.fix == f"the model's linear layers are {layers}"


@pytest.mark.parametrize(("whole", "tied"), [("norm", False), ("embed_tokens", True), ("lm_head", True)])
def test_only_embeddings_and_heads_are_kept_tied(whole, tied, tiny_llama):
    policy = CausalLM(str(tiny_llama), lora=Lora(r=2, modules_to_save=[whole])).build()
    assert policy.peft_config["default"].ensure_weight_tying == tied


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(value, tiny_llama, file, tmp_path):
    made, _ = trained(tiny_llama, file, Lora(r=2), steps=1)
    folder = saved(made, tmp_path / "saved", tiny_llama)
    CausalLM(str(folder)).build()
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[-1]
    weights[name][0, 0] = value
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not finite") as refusal:
        CausalLM(str(folder)).build()
    assert refusal.value.code == ExitCode.MODEL
    assert name in str(refusal.value)
    assert refusal.value.problems[0].where == str(folder / "adapter_model.safetensors")
