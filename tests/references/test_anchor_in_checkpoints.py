"""Restarting never moves the anchor: what a checkpoint keeps of the reference, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import peft_adapters, short_runs

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.models.causal_lm import Lora
from dpo_lightning.references import (
    AdapterDisabled,
    FrozenAdapter,
    FrozenCopy,
    ReferenceFree,
    ReferencePolicy,
    Synced,
    default_reference,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Pairs."""
    return short_runs.write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


@pytest.fixture
def run(tiny_llama, file, tmp_path):
    """The model of a run in a folder of its own, and the run's checkpoint."""
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    short_runs.fit(short_runs.module(model), file, tmp_path / "first", steps=2)
    return model, tmp_path / "first/checkpoints/step=2.ckpt"


def test_a_probe_is_the_same_to_the_bit_whenever_it_is_taken(run, file, tmp_path):
    """Before training, after it, and in another process's place."""
    model, ckpt = run
    kept = torch.load(ckpt, weights_only=True)
    made = short_runs.ready(model)
    assert torch.equal(kept["reference_probe"], made.reference.identity(made.policy)["reference_probe"])
    assert len(kept["reference_probe"]) > 10
    assert (kept["reference_probe"] < 0).any()
    short_runs.take_steps(made, short_runs.batch(made, file), 2)
    before = made.reference.identity(made.policy)["reference_probe"].clone()
    made.reference.record_identity(made.policy, "again")  # the reference itself, not only what is kept of it
    assert torch.equal(made.reference.identity(made.policy)["reference_probe"], before)


def test_the_same_weights_as_another_function_are_refused(run, file, tmp_path):
    """No weight tells of it: the rotary positions turn at another speed."""
    model, ckpt = run
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its weights are equal, its log-probabilities differ by up to") as error:
        short_runs.fit(short_runs.module(model), file, tmp_path / "second", steps=3, ckpt=ckpt)
    assert error.value.code == ExitCode.CONFIG


@pytest.mark.parametrize("kind", ["whole", "new", "trained"])
def test_weights_that_differ_by_less_than_the_probe_tells_are_another_reference(kind, tiny_llama, tmp_path):
    """A digest is of every bit that is sampled: of a whole model, the base of a new adapter, an adapter's own."""
    model = peft_adapters.trained(tmp_path, tiny_llama, {}) if kind == "trained" else tiny_llama
    folder, lora = shutil.copytree(model, tmp_path / "model"), Lora(r=2) if kind == "new" else None
    made = short_runs.ready(folder, lora=lora)
    anchor = made.reference.identity(made.policy)
    file = folder / ("adapter_model.safetensors" if kind == "trained" else "model.safetensors")
    weights = load_file(file)
    for value in weights.values():
        value *= 1 + 1e-6
    save_file(weights, file, {"format": "pt"})
    again = short_runs.ready(folder, lora=lora)
    torch.testing.assert_close(
        again.reference.identity(again.policy)["reference_probe"], anchor["reference_probe"], rtol=0, atol=1e-4
    )
    with pytest.raises(UserError, match="another reference") as raised:
        again.reference.check_identity(again.policy, anchor)
    assert "its weights are equal" not in str(raised.value)


def test_weights_between_those_that_are_sampled_are_seen(run, file, tmp_path):
    model, ckpt = run
    weights = load_file(model / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"].flatten()
    sampled = torch.zeros(len(embedding), dtype=torch.bool)
    sampled[:: len(embedding) // 256] = True
    embedding[~sampled] *= 1.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its weights are equal"):
        short_runs.fit(short_runs.module(model), file, tmp_path / "second", steps=3, ckpt=ckpt)


def test_rounding_of_another_machine_is_no_other_reference(run, file, tmp_path):
    model, ckpt = run
    content = torch.load(ckpt, weights_only=True)
    torch.save({**content, "reference_probe": content["reference_probe"] * (1 + 1e-6)}, ckpt)
    short_runs.fit(short_runs.module(model), file, tmp_path / "second", steps=3, ckpt=ckpt)


@pytest.mark.parametrize(("dtype", "near", "far"), [("float32", 8e-5, 1.5e-4), ("bfloat16", 2.5e-2, 3.5e-2)])
def test_a_probe_may_move_by_what_its_precision_rounds(dtype, near, far, tiny_llama):
    """One value of it by parts of the largest: up to 1e-4 in float32, up to 3e-2 in half precision."""
    made = short_runs.ready(tiny_llama, dtype=dtype)
    anchor = made.reference.identity(made.policy)
    probe = anchor["reference_probe"]
    step = torch.zeros(len(probe))
    step[probe.abs().argmin()] = probe.abs().max()
    for sign in (1, -1):
        made.reference.check_identity(made.policy, {**anchor, "reference_probe": probe + sign * near * step})
        with pytest.raises(UserError, match="its weights are equal"):
            made.reference.check_identity(made.policy, {**anchor, "reference_probe": probe + sign * far * step})


@pytest.mark.parametrize("probe", [None, torch.zeros(3)])
def test_a_checkpoint_without_a_probe_of_this_kind_is_refused(run, probe, file, tmp_path):
    model, ckpt = run
    content = {**torch.load(ckpt, weights_only=True), "reference_probe": probe}
    torch.save({name: value for name, value in content.items() if value is not None}, ckpt)
    with pytest.raises(UserError, match="another reference"):
        short_runs.fit(short_runs.module(model), file, tmp_path / "second", steps=3, ckpt=ckpt)


def test_a_start_that_is_drawn_anew_is_refused(tiny_llama, file, tmp_path):
    """A random adapter of another draw is another reference, over a base that is the same."""
    torch.manual_seed(0)
    short_runs.fit(peft_adapters.module(tiny_llama, peft_adapters.STRANGE["random"]), file, tmp_path / "first", steps=1)
    ckpt = tmp_path / "first/checkpoints/step=1.ckpt"
    torch.manual_seed(1)
    with pytest.raises(UserError, match="its weights are equal"):
        short_runs.fit(
            peft_adapters.module(tiny_llama, peft_adapters.STRANGE["random"]),
            file,
            tmp_path / "second",
            steps=2,
            ckpt=ckpt,
        )


def test_pissa_goes_on_where_it_was(tiny_llama, file, tmp_path):
    """The base is decomposed again, the trained adapter restored, and the anchor is that of step 0."""
    made = peft_adapters.module(tiny_llama, peft_adapters.STRANGE["pissa"])
    short_runs.fit(made, file, tmp_path / "first", steps=2)
    pairs = short_runs.batch(made, file)
    start = made.reference(made.policy, pairs).sums
    again = peft_adapters.module(tiny_llama, peft_adapters.STRANGE["pissa"])
    short_runs.fit(again, file, tmp_path / "second", steps=2, ckpt=None)
    resumed = peft_adapters.module(tiny_llama, peft_adapters.STRANGE["pissa"])
    ckpt = tmp_path / "first/checkpoints/step=2.ckpt"
    short_runs.fit(resumed, file, tmp_path / "third", steps=4, ckpt=ckpt)
    assert torch.equal(resumed.reference(resumed.policy, pairs).sums, start)
    assert not torch.equal(made.compare(pairs)[1].policy_chosen, resumed.compare(pairs)[1].policy_chosen)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("kind", ["whole", "new", "trained"])
def test_a_compiled_model_is_probed_without_a_graph(kind, tiny_llama, tmp_path):
    """A graph of a few tokens would cost some ten seconds."""
    torch._dynamo.utils.counters.clear()
    folder = peft_adapters.trained(tmp_path, tiny_llama, {}) if kind == "trained" else tiny_llama
    short_runs.ready(folder, compile=True, lora=Lora(r=2) if kind == "new" else None)
    assert not torch._dynamo.utils.counters["stats"]


# Which reference is taken


@pytest.mark.parametrize(
    ("kind", "lora", "expected", "reason"),
    [
        ("whole", None, FrozenCopy, "all of the policy's weights are trained"),
        ("whole", Lora(r=2), AdapterDisabled, "with its new adapter disabled, the policy equals its start"),
        ("trained", None, FrozenAdapter, "the adapter was trained before"),
        ("trained", Lora(r=2), FrozenAdapter, "the adapter was trained before"),
    ],
)
def test_the_reference_is_chosen_by_what_the_policy_is(kind, lora, expected, reason, tiny_llama, tmp_path, capsys):
    folder = peft_adapters.trained(tmp_path, tiny_llama, {}) if kind == "trained" else tiny_llama
    made = short_runs.ready(folder, lora=lora)
    assert type(made.reference) is expected
    assert f"reference: {expected.__name__} ({reason}" in capsys.readouterr().out
    free, why = default_reference(made.policy, made.spec, reference_free=True)
    assert (type(free), why) == (ReferenceFree, "the loss uses no reference")


def test_every_reference_can_be_named():
    """Also those that have another class between them and the first."""
    names = {kind.__name__ for kind in ReferencePolicy.kinds()}
    assert names >= {"FrozenCopy", "FrozenAdapter", "AdapterDisabled", "Precomputed", "ReferenceFree", "Synced"}
    assert "HeldStart" not in names
    assert Synced in ReferencePolicy.kinds()
