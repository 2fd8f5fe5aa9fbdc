"""A run that is stopped at any moment and continued by the same command is the run that was never stopped."""

import shutil

import pytest
from support.command_line import CONFIGS, Bench, json_lines, pairs, run
from support.disturbed_runs import CHOSEN
from support.run_results import find_difference, read_run

from dpo_lightning import stopping
from dpo_lightning.callbacks.token_loss import TokenLoss

CALLBACKS = (
    *CHOSEN,
    "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",
    "--trainer.callbacks.logging_interval=epoch",
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
    "--trainer.callbacks.monitor=train/loss",
    "--trainer.callbacks.patience=5",
)
AVERAGES = ("--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.5")

RECIPES = {
    "windows": ("--data.batch_size=1", "--trainer.accumulate_grad_batches=3", "--trainer.max_epochs=2"),
    "evaluations": ("--data.batch_size=1", "--trainer.val_check_interval=3", "--data.num_workers=2"),
    "evaluations in windows": (
        "--data.batch_size=1",
        "--trainer.accumulate_grad_batches=3",
        "--trainer.val_check_interval=2",
    ),
    "evaluated last": ("--trainer.max_epochs=-1", "--trainer.max_steps=4", "--trainer.log_every_n_steps=3"),
    "callbacks at epochs' ends": (*CALLBACKS, "--data.batch_size=2", "--trainer.max_epochs=2"),
    "averages": (*AVERAGES, "--data.batch_size=2", "--trainer.val_check_interval=3"),
    "capped": ("--trainer.max_epochs=3", "--trainer.max_steps=3"),
}

MOMENTS = 8
"""Moments at which a run looks for signals at least: before training, at its steps, within evaluations, at its end."""


class Moments:
    """Stands in for signals: one comes at the n-th moment at which the run looks for it."""

    def __init__(self, monkeypatch):
        self.count, self.at = 0, None
        monkeypatch.setattr(stopping, "requested", self.requested)

    def requested(self):
        self.count += 1
        return self.at is not None and self.count > self.at

    def begin(self, at=None):
        self.count, self.at = 0, at


@pytest.fixture
def moments(monkeypatch):
    return Moments(monkeypatch)


@pytest.fixture
def bench(tmp_path, tiny_gpt2, monkeypatch):
    """Demonstrations for a model with dropout, whose steps draw random numbers."""
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, tiny_gpt2)
    for path, rows in ((bench.train, pairs(8)), (bench.eval, pairs(5, 50))):
        json_lines(path, [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    return bench


def fit(bench, recipe, out):
    options = [word for word in bench.options(out) if not word.startswith("--config=")]
    return run("fit", f"--config={CONFIGS / 'sft.yaml'}", *options, *(word.replace("RUN", out) for word in recipe))


def list_checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoints/epoch*.ckpt"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_moment(bench, moments, name):
    recipe = RECIPES[name]
    assert fit(bench, recipe, "first").code == 0  # encodes the rows
    moments.begin()
    assert fit(bench, recipe, "whole").code == 0
    whole = read_run(bench.folder / "whole")
    count = moments.count
    assert count > MOMENTS
    for at in range(count):
        moments.begin(at)
        ran = fit(bench, recipe, "cut")
        assert ran.code == 75, (at, ran)
        moments.begin()
        ran = fit(bench, recipe, "cut")
        assert ran.code == 0, (at, ran)
        assert not find_difference(whole, read_run(bench.folder / "cut")), at
        assert list_checkpoints(bench.folder / "cut") == list_checkpoints(bench.folder / "whole"), at
        shutil.rmtree(bench.folder / "cut")


def test_it_is_trained_further_as_far(bench, moments):
    """Epochs are counted the same after a stop within the evaluation at the end of the last one."""
    first, second = (("--data.batch_size=2", f"--trainer.max_epochs={epochs}") for epochs in (1, 2))
    assert fit(bench, first, "first").code == 0  # encodes the rows
    moments.begin()
    assert fit(bench, first, "whole").code == 0
    count = moments.count
    assert fit(bench, second, "whole").code == 0
    whole = read_run(bench.folder / "whole")
    for at in range(count - 6, count):
        moments.begin(at)
        assert fit(bench, first, "cut").code == 75, at
        moments.begin()
        for recipe in (first, second):
            ran = fit(bench, recipe, "cut")
            assert ran.code == 0, (at, ran)
        assert not find_difference(whole, read_run(bench.folder / "cut")), at
        shutil.rmtree(bench.folder / "cut")


def test_a_run_without_checkpoints_stops_too(bench, monkeypatch):
    """Nothing is saved, and the same command begins again."""
    recipe, batches = ("--trainer.enable_checkpointing=false", "--data.batch_size=1"), []
    counted = TokenLoss.on_train_batch_end

    def count(*args):
        batches.append(args)
        counted(*args)

    monkeypatch.setattr(TokenLoss, "on_train_batch_end", count)
    monkeypatch.setattr(stopping, "requested", lambda: len(batches) == 2)
    ran = fit(bench, recipe, "cut")
    assert (ran.code, len(batches)) == (75, 2), ran
    assert "nothing new was saved" in ran.err
    ran = fit(bench, recipe, "cut")
    assert ran.code == 75, ran  # it is still requested
    monkeypatch.setattr(stopping, "requested", lambda: False)
    ran = fit(bench, recipe, "cut")
    assert ran.code == 0, ran
    assert "begins again" in ran.out
