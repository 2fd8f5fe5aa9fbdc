"""Measures in `trainer.callback_metrics`: what checkpoints, early stopping and the progress bar read."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from support import kto_runs, whole_runs
from support.command_line import CONFIGS, ON_CPU, QUIET, json_lines, run

from dpo_lightning import UnpairedDataModule
from dpo_lightning.default_callbacks import write_out_metrics

KINDS = {**whole_runs.KINDS, "kto": (kto_runs.kto, UnpairedDataModule, kto_runs.labelled_rows)}
RECIPES = {"dpo": "dpo.yaml", "kto": "kto.yaml", "listwise": "dpo-listwise.yaml", "sft": "sft.yaml"}
ORDER = {
    "dpo": "rewards/accuracies",
    "kto": "rewards/margins",
    "listwise": "rewards/accuracies",
    "sft": "loss",
}
"""A measure of each kind besides its loss, where it has one."""


def train(kind, model, folder, rows=6, **options):
    make, data_module, make_rows = KINDS[kind]
    files = [whole_runs.write_rows(folder, name, make_rows(rows, i)) for name, i in (("train", 0), ("eval", 50))]
    data = data_module(*files, batch_size=1, max_length=64, shuffle=False)
    module = make(model)
    memory, trainer = whole_runs.fit(module, data, folder, **options)
    return memory, trainer


@pytest.mark.parametrize("kind", KINDS)
def test_every_logged_measure_can_be_monitored(kind, tiny_llama, tmp_path):
    """Under the name and with the number of the curve, those of training and those of an evaluation."""
    memory, trainer = train(kind, tiny_llama, tmp_path, accumulate_grad_batches=2, max_epochs=2)
    last = {}
    for _, values in sorted(memory.steps.items()):
        last |= values
    assert {name for name in last if name.startswith("train/")}
    assert {name for name in last if name.startswith("eval/")}
    monitored = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert monitored == pytest.approx(last, rel=1e-6)  # a learning rate is one of float64


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_follow_a_measure(kind, tiny_llama, tmp_path):
    monitored = {"train/loss": "min", "eval/loss": "min", f"eval/{ORDER[kind]}": "max"}
    savers = [
        ModelCheckpoint(tmp_path / f"{number}", "{step}", monitor=name, mode=mode)
        for number, (name, mode) in enumerate(monitored.items())
    ]
    memory, _ = train(kind, tiny_llama, tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=savers)
    for saver, (name, mode) in zip(savers, monitored.items(), strict=True):
        ends = [memory.steps[step][name] for step in (6, 12, 18)]
        best = {"min": min, "max": max}[mode](ends)
        assert float(saver.best_model_score) == best
        assert Path(saver.best_model_path).name == f"step={6 * (ends.index(best) + 1)}.ckpt"


def test_a_checkpoint_within_an_epoch_follows_the_last_log_line(tiny_llama, tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="train/loss", every_n_train_steps=2)
    memory, _ = train("dpo", tiny_llama, tmp_path, enable_checkpointing=True, callbacks=[saver])
    seen = {step: memory.steps[step]["train/loss"] for step in (2, 4, 6)}
    assert float(saver.best_model_score) == min(seen.values())
    assert Path(saver.best_model_path).name == f"step={min(seen, key=seen.get)}.ckpt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train/loss", "eval/loss"])
def test_a_run_stops_early(kind, name, tiny_llama, tmp_path):
    """Nothing improves by 10 nats: it ends after the second look, not after the fifth epoch."""
    stop = EarlyStopping(name, min_delta=10.0, patience=1, check_on_train_epoch_end=name == "train/loss")
    memory, trainer = train(kind, tiny_llama, tmp_path, rows=3, max_epochs=5, callbacks=[stop])
    assert trainer.current_epoch == 2
    assert float(stop.best_score) == memory.steps[3][name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_names_what_is_monitored(kind, tiny_llama, tmp_path):
    """By the command line; a metric's slash in a checkpoint's name makes no folder."""
    rows = KINDS[kind][2]
    files = {name: json_lines(tmp_path / f"{name}.jsonl", rows(6, i)) for name, i in (("train", 0), ("eval", 50))}
    metric = f"eval/{ORDER[kind]}"
    name = f"{{step}}-{{{metric}:.3f}}"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer:\n  callbacks+:\n"
        f"  - {{class_path: ModelCheckpoint, init_args: {{monitor: {metric}, filename: '{name}'}}}}\n"
        f"  - {{class_path: ModelCheckpoint, init_args: {{monitor: train/loss, dirpath: {tmp_path}/run/train}}}}\n"
        "  - {class_path: EarlyStopping, init_args: {monitor: eval/loss, min_delta: 10.0, patience: 1}}\n"
        "  logger: {class_path: lightning.pytorch.loggers.CSVLogger, "
        f"init_args: {{save_dir: {tmp_path}/run, name: csv, version: ''}}}}\n"
    )
    flags = {
        "output_dir": tmp_path / "run",
        "model.policy.path": tiny_llama,
        "data.train": files["train"],
        "data.eval": files["eval"],
        "data.batch_size": 2,
        "data.max_length": 128,
        "trainer.max_steps": -1,
        "trainer.max_epochs": 4,
        "trainer.accumulate_grad_batches": 1,
        "trainer.log_every_n_steps": 1,
    }
    named = [f"--{name}={value}" for name, value in flags.items()]
    ran = run("fit", "--config", CONFIGS / RECIPES[kind], "--config", overlay, *named, *QUIET, *ON_CPU)
    assert ran.code == 0, ran
    with (tmp_path / "run/csv/metrics.csv").open() as file:
        curves = [row for row in csv.DictReader(file) if row.get(metric)]
    assert [int(row["step"]) for row in curves] == [3, 6]  # stopped after the second epoch of four
    (best,) = (tmp_path / "run/checkpoints").glob("step=*.ckpt")
    step, value = re.fullmatch(r"step=(\d)-(?:.*)=([-\d.]+)\.ckpt", best.name).groups()
    assert float(value) == pytest.approx(float(next(row for row in curves if row["step"] == step)[metric]), abs=6e-4)
    assert metric.replace("/", "_") in best.name
    saved = torch.load(next((tmp_path / "run/train").glob("*.ckpt")), weights_only=False)["callbacks"]
    (state,) = [value for key, value in saved.items() if "train/loss" in key]
    assert state["monitor"] == "train/loss"
    assert float(state["best_model_score"]) > 0


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("{epoch}-{step}-{eval/rewards/margins:.2f}", "epoch=1-step=10-eval_rewards_margins=0.25"),
        ("{eval/loss}-{eval/loss_of_another}", "eval_loss=0.5-eval_loss_of_another=0"),
        ("best/{step:04d}", "best/step=0010"),
        ("last", "last"),
        (None, "epoch=1-step=10"),
    ],
)
def test_names_of_checkpoints_are_lightnings_but_for_the_slash(filename, name):
    saver = ModelCheckpoint(filename=filename)
    write_out_metrics(saver)
    values = {"epoch": 1, "step": 10, "eval/loss": 0.5, "eval/rewards/margins": 0.25}
    assert saver.format_checkpoint_name(values) == f"{name}.ckpt"


def test_a_name_without_metrics_stays_as_it_is():
    saver = ModelCheckpoint(filename="{step}-{eval/loss:.2f}", auto_insert_metric_name=False)
    write_out_metrics(saver)
    assert saver.filename == "{step}-{eval/loss:.2f}"
