"""`--final best`: the final model has the weights that a `ModelCheckpoint` chose, and its measures are of them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import quiet_bench, refused
from support.run_results import find_difference, read_run

BY_METRIC = """
trainer:
  val_check_interval: 2
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: eval/rewards/margins, mode: MODE, filename: "chosen-{step}"}
    - class_path: dpo_lightning.callbacks.RewardMargins
"""
EPOCHS = "--trainer.max_epochs=3"


@pytest.fixture
def bench(tmp_path, tiny_llama):
    """A recipe of six steps that keeps the best checkpoint by a metric which grows."""
    return quiet_bench(tmp_path, tiny_llama)


def by(bench, mode):
    """The flags of a recipe whose best checkpoint is the first (`min`) or the last one (`max`)."""
    return [*bench.overlay(BY_METRIC.replace("MODE", mode), f"{mode}.yaml"), EPOCHS]


def weights(folder):
    """The weights of a run's final model."""
    return load_file(folder / "final_model/model.safetensors")


@pytest.mark.parametrize("more", [(), ("--model.policy.lora.r=2",)], ids=["whole", "LoRA"])
def test_the_best_weights_are_those_of_a_run_that_ended_there(bench, more, tmp_path):
    ran = bench.fit(*by(bench, "min"), "--final=best", *more)
    assert ran.code == 0, ran
    metrics = bench.json("metrics.json")
    step = metrics["final_model_step"]
    assert 0 < step < metrics["step"] == 6
    assert bench.fit(*by(bench, "min"), f"--trainer.max_steps={step}", *more, out="shorter").code == 0
    best, shorter = (read_run(tmp_path / name) for name in ("run", "shorter"))
    assert find_difference(best, best._replace(weights=shorter.weights)) == ""
    lowest = min(best.curves["eval/rewards/margins"], key=lambda point: point[1])
    assert lowest == (step, pytest.approx(metrics["eval/rewards/margins"]))
    assert metrics["eval/loss"] == shorter.metrics["eval/loss"]
    told = f"weights of step {step}, the best eval/rewards/margins"
    assert told in ran.out
    assert told.removeprefix("weights ") in (tmp_path / "run/final_model/README.md").read_text()


def test_the_last_weights_stay_where_they_are_the_best(bench, tmp_path):
    ran = bench.fit(*by(bench, "max"), "--final=best")
    assert ran.code == 0, ran
    assert "final model: the last weights, of step 6, the best eval/rewards/margins (" in ran.out
    assert bench.fit(*by(bench, "max"), out="last").code == 0
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "last")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "final_model_step" not in bench.json("metrics.json")


def test_checkpoints_and_curves_are_those_of_the_last_weights(bench, tmp_path):
    """From which the run can be trained further."""
    assert bench.fit(*by(bench, "min"), "--final=best").code == 0
    assert bench.fit(*by(bench, "min"), out="last").code == 0
    best, last = (read_run(tmp_path / name) for name in ("run", "last"))
    assert best.curves == last.curves
    assert find_difference(best._replace(weights={}, metrics={}), last._replace(weights={}, metrics={})) == ""
    ours, theirs = (torch.load(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("run", "last"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_that_was_stopped_before_its_model_was_written_writes_the_best(bench, tmp_path):
    command = (*by(bench, "min"), "--final=best")
    assert bench.fit(*command).code == 0
    first, metrics = weights(tmp_path / "run"), bench.json("metrics.json")
    shutil.rmtree(tmp_path / "run/final_model")
    (tmp_path / "run/metrics.json").unlink()
    assert bench.fit(*command).code == 0
    again = weights(tmp_path / "run")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert bench.json("metrics.json") == metrics


def test_without_a_metric_it_is_refused_before_training(bench, tmp_path):
    refused(bench.fit("--final=best"), 64, "no callback chooses a best checkpoint", "monitor: eval/loss")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_leaves_the_last_weights(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("dpo_lightning.runs.best_weights.find_damage", lambda *_: "is damaged")
    ran = bench.fit(*by(bench, "min"), "--final=best")
    assert ran.code == 0
    assert "warning: final model: the last weights" in ran.out
    assert bench.fit(*by(bench, "min"), out="last").code == 0
    assert all(
        torch.equal(value, weights(tmp_path / "last")[name]) for name, value in weights(tmp_path / "run").items()
    )


def test_another_choice_for_a_finished_run_writes_those_weights(bench, tmp_path):
    def choose(*final):
        ran = bench.fit(*by(bench, "min"), *final)
        assert ran.code == 0, ran
        return ran.out, weights(tmp_path / "run"), bench.json("metrics.json")

    _, last, measures = choose()
    said, best, of_best = choose("--final=best")
    assert "finished" not in said
    assert of_best["final_model_step"] < of_best["step"] == 6
    assert any(not torch.equal(best[name], last[name]) for name in last)
    assert "finished" in choose("--final=best")[0]
    said, again, of_last = choose("--final=last")
    assert "finished" not in said
    assert all(torch.equal(again[name], last[name]) for name in last)
    assert "final_model_step" not in of_last
    assert of_last["eval/loss"] == measures["eval/loss"]
    assert "finished" in choose()[0]


def test_another_choice_that_is_stopped_is_made_by_the_next_command(bench, tmp_path, monkeypatch):
    assert bench.fit(*by(bench, "min")).code == 0
    monkeypatch.setattr("dpo_lightning.callbacks.final_model.restore_best", lambda *_: 1 / 0)
    assert bench.fit(*by(bench, "min"), "--final=best").code != 0
    monkeypatch.undo()
    assert "finished" not in bench.fit(*by(bench, "min"), "--final=best").out
    assert bench.json("metrics.json")["final_model_step"] < 6


def test_other_weights_of_a_finished_run_without_checkpoints_are_refused(bench, tmp_path):
    assert bench.fit(*by(bench, "min")).code == 0
    shutil.rmtree(tmp_path / "run/checkpoints")
    refused(bench.fit(*by(bench, "min"), "--final=best"), 66, "its checkpoints were removed", "--final last")


def test_checkpoints_of_weights_only_are_refused_before_training(bench, tmp_path):
    ran = bench.fit(
        *by(bench, "min"),
        "--final=best",
        *bench.overlay(BY_METRIC.replace("MODE, ", "min, save_weights_only: true, "), "only.yaml"),
    )
    refused(ran, 64, "no callback chooses a best checkpoint", "save_weights_only")
    assert not (tmp_path / "run").exists()
