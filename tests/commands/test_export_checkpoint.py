"""`export` and `infer` of a checkpoint: the model that its run had at that step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support.command_line import exported, infer, quiet_bench, refused
from transformers import AutoModelForCausalLM

from dpo_lightning.errors import UserError
from dpo_lightning.evaluation.record import Record
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.merging import probe_logits
from dpo_lightning.runs.lineage import read_stages, trace_stages
from dpo_lightning.runs.resume import read_checkpoint

KINDS = {
    "whole": (),
    "LoRA": ("--model.policy.lora.r=2",),
    "DoRA": ("--model.policy.lora.r=2", "--model.policy.lora.use_dora=true"),
    "PiSSA": ("--model.policy.lora.r=2", "--model.policy.lora.init_lora_weights=pissa"),
    "QLoRA": ("--model.policy.lora.r=2", "--model.policy.quantization.bits=4"),
}
EACH_STEP = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_top_k: -1, filename: "{step}"}
"""


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def runs(request, tiny_llama, tmp_path_factory):
    """The folder of a run of two steps with a checkpoint of each, and that of a run which ended after one step."""
    bench = quiet_bench(tmp_path_factory.mktemp("runs"), tiny_llama)
    overlay = bench.overlay(EACH_STEP, "each_step.yaml")
    assert bench.fit(*request.param, *overlay).code == 0
    assert bench.fit(*request.param, "--trainer.max_steps=1", out="shorter").code == 0
    return bench.folder / "run", bench.folder / "shorter"


def logits(folder):
    """Logits of what lies in a folder, in float32 and not quantized."""
    return probe_logits(CausalLM(str(folder), attention="eager").build())


def test_each_checkpoint_is_the_model_of_a_run_that_ends_there(runs, tmp_path):
    run, shorter = runs
    for name, model in (("last", run), ("step=1", shorter)):
        ran = exported(run / f"checkpoints/{name}.ckpt", tmp_path / name)
        assert (ran.code, ran.err) == (0, ""), ran
        written = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        torch.testing.assert_close(probe_logits(written), logits(model / "final_model"), rtol=0, atol=1e-4)
    assert (logits(tmp_path / "last") - logits(tmp_path / "step=1")).abs().max() > 1e-2


def test_an_adapter_is_kept_as_the_run_would_have_left_it(runs, tmp_path):
    run, shorter = runs
    final = shorter / "final_model"
    ran = exported(run / "checkpoints/step=1.ckpt", tmp_path / "kept", "--keep_adapter")
    if not (final / "adapter_config.json").exists():
        refused(ran, 64, "only a checkpoint of a run that trains an adapter")
        return
    assert (ran.code, ran.err) == (0, ""), ran
    torch.testing.assert_close(logits(tmp_path / "kept"), logits(final), rtol=0, atol=1e-5)
    ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path / "kept", final))
    assert ours == theirs
    assert {path.name for path in final.iterdir()} == {path.name for path in (tmp_path / "kept").iterdir()}
    stages = trace_stages(tmp_path / "kept")
    assert (stages[-1].what, stages[-1].steps) == ("DPOModule", 1)


def test_its_record_serves_an_evaluation_as_that_of_the_run(runs, tmp_path):
    """Loss, reference and the quantization of the base."""
    run, _ = runs
    assert exported(run / "checkpoints/last.ckpt", tmp_path / "out").code == 0
    ours, theirs = Record.of(read_stages(tmp_path / "out")), Record.of(read_stages(run / "final_model"))
    assert ours.make_loss(None) == theirs.make_loss(None)
    assert ours.find_reference() == theirs.find_reference()
    assert ours.make_quantization() == theirs.make_quantization()
    assert ours.stage.steps == theirs.stage.steps == 2
    assert [stage.what for stage in read_stages(tmp_path / "out")] == ["DPOModule", "export"]


def test_it_answers(runs):
    run, _ = runs
    ran = infer(run / "checkpoints/last.ckpt", "--temperature=0")
    assert ran.code == 0, ran
    assert ran.out == infer(run / "final_model", "--temperature=0").out


@pytest.mark.parametrize("runs", [(), KINDS["LoRA"]], indirect=True, ids=["whole", "LoRA"])
def test_weights_alone_are_a_model_too(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    whole = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    weights = {name: whole[name] for name in ("epoch", "global_step", "pytorch-lightning_version", "state_dict")}
    torch.save(weights, run / "checkpoints/weights.ckpt")
    with pytest.raises(UserError, match="weights alone"):  # as `fit` reads it
        read_checkpoint(run / "checkpoints/weights.ckpt")
    ran = infer(run / "checkpoints/weights.ckpt", "--temperature=0")
    assert ran.code == 0, ran
    assert ran.out == infer(run / "final_model", "--temperature=0").out


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of the longer run, to damage."""
    return Path(shutil.copytree(runs[0], tmp_path / "copied"))


@pytest.mark.parametrize("runs", [()], indirect=True, ids=["whole"])
@pytest.mark.parametrize(
    "command", [infer, lambda path: exported(path, path.parents[1] / "out")], ids=["infer", "export"]
)
def test_what_is_no_whole_checkpoint_of_a_run_is_refused(command, copied):
    file = copied / "checkpoints/last.ckpt"
    refused(command(file.with_name("lost.ckpt")), 66, "does not exist", "last.ckpt")
    config = copied / "config.yaml"
    recorded = config.read_text()
    config.unlink()
    refused(command(file), 66, "no config.yaml of a run", "leave the checkpoint in the folder of its run")
    config.write_text(recorded.replace("policy:", "polite:"))
    refused(command(file), 66, "names no policy")
    content = yaml.safe_load(recorded)
    content["model"]["init_args"]["policy"]["lora"] = {"r": 2}
    config.write_text(yaml.safe_dump(content))
    refused(command(file), 64, "does not fit the model of the run in whose folder it lies", "the folder of its own run")
    config.write_text(recorded)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    refused(command(file), 66, "the checkpoint is damaged")
    assert not (copied.parent / "out").exists()
