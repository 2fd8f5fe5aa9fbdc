"""A run that is killed right after any of its checkpoints was written, and continued, is the run that was not."""

import shutil

import pytest
import torch
from lightning.pytorch import Callback
from support.command_line import CONFIGS, Bench, json_lines, pairs, run
from support.disturbed_runs import CHOSEN, LOGGED, WINDOWS
from support.run_results import find_difference, read_run

from dpo_lightning.runs.checkpoint_files import CheckpointFiles

ALWAYS = ("--trainer.callbacks+=RunCheckpoints", "--trainer.callbacks.every_n_steps=1")
DRAWING = ("--allow-class-path=runs", "--trainer.callbacks+=runs.test_killed_at_saves.Drawing")

EARLY = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
    "--trainer.callbacks.monitor=eval/loss",
    "--trainer.callbacks.mode=max",
    "--trainer.callbacks.patience=1",
)

RECIPES = {
    "evaluated within windows": (*WINDOWS, "--trainer.val_check_interval=2"),
    "evaluated between steps": (*WINDOWS, "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=2"),
    "stopped early": (*EARLY, "--data.batch_size=2", "--trainer.max_epochs=4"),
    "evaluated last": ("--data.batch_size=1", "--trainer.max_epochs=-1", "--trainer.max_steps=8"),
}


class Drawing(Callback):
    """Draws random numbers in each evaluation, as sampled answers do."""

    def on_validation_batch_end(self, *_):
        torch.rand(3)


@pytest.fixture
def bench(tmp_path, tiny_gpt2, monkeypatch):
    """Demonstrations for a model with dropout, whose steps draw random numbers."""
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, tiny_gpt2)
    for path, rows in ((bench.train, pairs(8)), (bench.eval, pairs(3, 50))):
        json_lines(path, [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    return bench


def fit(bench, recipe, out):
    options = [word for word in bench.options(out) if not word.startswith("--config=")]
    more = [word.replace("RUN", out) for word in (*ALWAYS, *CHOSEN, *LOGGED, *DRAWING)]
    ran = run("fit", f"--config={CONFIGS / 'sft.yaml'}", *options, *more, *recipe)
    assert ran.code == 0, ran


@pytest.mark.parametrize("name", RECIPES)
def test_each_save(bench, monkeypatch, name):
    """What a process leaves that ends there: its files, without what loggers hold in memory."""
    cut, left = bench.folder / "cut", []
    fit(bench, RECIPES[name], "cut")
    whole, chosen, table = read_run(cut), list_checkpoints(cut), read_table(cut)
    shutil.rmtree(cut)
    save = CheckpointFiles.save_checkpoint

    def save_and_copy(self, *args, **options):
        save(self, *args, **options)
        left.append(shutil.copytree(cut, bench.folder / f"left-{len(left)}", ignore=shutil.ignore_patterns("*.lock")))

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFiles, "save_checkpoint", save_and_copy)
        fit(bench, RECIPES[name], "cut")
    assert not find_difference(whole, read_run(cut))
    for folder in left:
        shutil.rmtree(cut)
        shutil.move(folder, cut)
        fit(bench, RECIPES[name], "cut")
        assert not find_difference(whole, read_run(cut)), folder.name
        assert read_table(cut) == table, folder.name
        more = list_checkpoints(cut) - chosen
        # ModelCheckpoint writes a better one before it removes the worst, of which its state then knows nothing.
        assert len(more) <= 1, folder.name
        assert not any("-v" in name for name in more), folder.name
        assert chosen <= list_checkpoints(cut), folder.name


def list_checkpoints(folder):
    return {path.name for path in (folder / "checkpoints").glob("*.ckpt")}


def read_table(folder):
    (table,) = folder.rglob("metrics.csv")
    return table.read_text()
