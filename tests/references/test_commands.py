"""References as a user names them: by flag, through restarts, from stage to stage."""

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import refused

SYNCED = ("--model.reference", "Synced", "--model.reference.every", "1", "--model.reference.alpha", "0.5")
STARTS_AT_LN2 = "self-check: passed (starting loss 0.693147, margins 0, tokens sound)"


@pytest.mark.parametrize("lora", [(), ("--model.policy.lora.r", "2", "--model.policy.lora.target_modules", "[q_proj]")])
def test_a_synced_run_goes_on_as_if_it_had_never_stopped(lora, bench, tmp_path):
    ran = bench.fit(*SYNCED, *lora)
    assert ran.code == 0, ran
    assert "reference: Synced\n" in ran.out
    assert "reference: moved towards the policy by 0.5 after step 1; again every 1 steps" in ran.out
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert "reference._extra_state" in torch.load(last, weights_only=True)["state_dict"]
    ran = bench.fit(*SYNCED, *lora, "--trainer.max_epochs", "2", "--ckpt_path", last, out="more")
    assert ran.code == 0, ran
    assert bench.fit(*SYNCED, *lora, "--trainer.max_epochs", "2", out="whole").code == 0
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    more, whole, stayed = (load_file(tmp_path / f"{run}/final_model" / name) for run in ("more", "whole", "run"))
    assert all(torch.equal(value, more[key]) for key, value in whole.items())
    assert not all(torch.equal(value, stayed[key]) for key, value in whole.items())
    assert bench.json("metrics.json", "more")["eval/loss"] == bench.json("metrics.json", "whole")["eval/loss"]
    ran = bench.fit("--model.reference", "FrozenCopy", *lora, "--trainer.max_epochs", "2", "--ckpt_path", last, out="x")
    refused(ran, 64, "model.reference")


def test_from_an_adapter_to_the_next(bench, tmp_path):
    """SFT's adapter, a stage and another: each begins at ln 2 against the adapter that it was given."""
    lora = ("--model.policy.lora.r", "2", "--trainer.max_steps", "2")
    assert bench.fit(*lora, out="first").code == 0
    for number, (before, after) in enumerate((("first", "second"), ("second", "third"))):
        ran = bench.fit("--model.policy.path", tmp_path / before / "final_model", "--trainer.max_steps", "2", out=after)
        assert ran.code == 0, ran
        assert "reference: FrozenAdapter (the adapter was trained before" in ran.out
        assert STARTS_AT_LN2 in ran.out, number
        names = {path.name for path in (tmp_path / after / "final_model").rglob("*")}
        assert "adapter_model.safetensors" in names
        assert not [name for name in names if "reference" in name]
    off = ("--model.policy.path", tmp_path / "first/final_model", "--model.reference", "AdapterDisabled", *lora[:2])
    refused(bench.fit(*off, out="off"), 64, "the adapter was trained before", "--model.reference out")


def test_a_frozen_adapter_is_precomputed_as_the_start_that_it_is(bench, tmp_path):
    assert bench.fit("--model.policy.lora.r", "2", "--trainer.max_steps", "2", out="first").code == 0
    path = ("--model.policy.path", tmp_path / "first/final_model")
    assert bench.run("precompute", *path, "--model.reference", "FrozenAdapter").code == 0
    assert bench.fit(*path, "--model.reference", "Precomputed", out="looked_up").code == 0
    assert bench.fit(*path, out="live").code == 0
    looked_up, live = (bench.json("metrics.json", run) for run in ("looked_up", "live"))
    assert looked_up["eval/rewards/margins"] == pytest.approx(live["eval/rewards/margins"], abs=1e-4)
    refused(bench.run("precompute", *path, *SYNCED), 64, "Synced cannot be precomputed")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--model.reference", "Sinced"), "Synced"),
        (("--model.reference", "FrozenAdaptor"), "FrozenAdapter"),
        (("--model.reference", "Synced", "--model.reference.evry", "3"), "did you mean model.reference.every?"),
        (("--model.reference", "Synced", "--model.reference.alpha", "2"), "alpha=2.0 must be in (0, 1]"),
        (("--model.reference", "FrozenAdapter"), "FrozenAdapter needs an adapter to copy"),
    ],
)
def test_what_cannot_be_is_refused(flags, said, bench):
    refused(bench.fit(*flags), 64, said)
