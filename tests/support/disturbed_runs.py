"""Runs of tiny models that campaigns disturb: their commands, their processes, and what they come to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from support import tiny_models
from support.command_line import CONFIGS, ON_CPU, QUIET, ROOT, json_lines, pairs

LONGEST = 600.0
"""Seconds after which a run hangs."""


class Recipe(NamedTuple):
    """What is trained: a config, a tiny model, and further options."""

    config: str
    model: str
    options: tuple[str, ...] = ()


TWO_RANKS = ("--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp")

WINDOWS = ("--data.batch_size=1", "--trainer.accumulate_grad_batches=3")
LOGGED = (
    "--trainer.logger+=TensorBoardLogger",
    "--trainer.logger.save_dir=RUN",
    "--trainer.logger.name=tensorboard",
    "--trainer.logger.version=",
    "--trainer.logger+=CSVLogger",
    "--trainer.logger.save_dir=RUN",
)
CHOSEN = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.dirpath=RUN/checkpoints",
    "--trainer.callbacks.monitor=eval/loss",
    "--trainer.callbacks.save_top_k=2",
)
STEPS = ("--data.batch_size=2", "--trainer.max_epochs=-1", "--trainer.max_steps=16")

RECIPES = {
    "sft": Recipe("sft", "gpt2"),
    "dpo": Recipe("dpo", "llama"),
    "lora": Recipe("dpo-lora", "llama", ("--model.policy.lora.r=4",)),
    "kto": Recipe("kto", "llama"),
    "windows": Recipe("sft", "gpt2", WINDOWS),
    "evaluations": Recipe("dpo", "llama", ("--data.batch_size=2", "--trainer.val_check_interval=3")),
    "workers": Recipe("sft", "gpt2", ("--data.num_workers=2",)),
    "chosen": Recipe("sft", "gpt2", (*WINDOWS, "--trainer.val_check_interval=2", *CHOSEN, *LOGGED)),
    "steps": Recipe("dpo", "llama", (*STEPS, "--trainer.log_every_n_steps=3", *CHOSEN, *LOGGED)),
    "two-ranks": Recipe("dpo", "llama", TWO_RANKS),
    "sharded": Recipe("dpo", "llama", (*TWO_RANKS, "--trainer.strategy=fsdp2")),
}


def save_models(folder: Path) -> dict[str, Path]:
    """Save the models of `RECIPES`; one has dropout, so that random numbers count."""
    return {
        "llama": tiny_models.save(folder / "llama", tiny_models.make_llama(), tiny_models.make_chat_tokenizer()),
        "gpt2": tiny_models.save(folder / "gpt2", tiny_models.make_gpt2(dropout=0.1), tiny_models.make_tokenizer()),
    }


def write_into(command: list[str], out: str) -> list[str]:
    """Return the command with the name of the run's folder, also where an option has `RUN` for it."""
    return [*(word.replace("RUN", out) for word in command), f"--output_dir={out}"]


def make_command(recipe: Recipe, folder: Path, models: Mapping[str, Path], *more: str, saved: int = 1) -> list[str]:
    """Write the rows of a recipe, and return its command with more options.

    Args:
        recipe: what is trained, for four epochs.
        folder: where the rows are written.
        models: the folder of each model.
        more: options, which win.
        saved: optimizer steps between two checkpoints.
    """
    policy = f"--model.policy.path={models[recipe.model]}"
    command = [sys.executable, "-m", "dpo_lightning", "fit", f"--config={CONFIGS / recipe.config}.yaml", policy]
    command += [*make_rows(folder, recipe.config), "--data.max_length=128", "--model.learning_rate=1e-3", *QUIET]
    command += [*ON_CPU, "--trainer.max_steps=-1", "--trainer.max_epochs=4", "--trainer.log_every_n_steps=1"]
    command += ["--trainer.callbacks+=RunCheckpoints", f"--trainer.callbacks.every_n_steps={saved}"]
    return [*command, *recipe.options, *more]


def make_rows(folder: Path, config: str) -> list[str]:
    """Write the rows of a config, and return the options that name them."""
    options = []
    for name, rows in (("train", pairs(16)), ("eval", pairs(5, 50))):
        found: list[dict[str, Any]] = list(rows)
        if not config.startswith("dpo"):
            sides = ("chosen", "rejected") if config == "kto" else ("chosen",)
            found = [
                {"prompt": row["prompt"], "completion": row[side]}
                | ({"label": side == "chosen"} if config == "kto" else {})
                for row in rows
                for side in sides
            ]
        options.append(f"--data.{name}={json_lines(folder / f'{name}.jsonl', found)}")
    return options


def start(command: list[str], log: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a run in the log's folder, in a group of its own, with temporary files on another file system."""
    shm = Path("/dev/shm")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(shm)} if shm.is_dir() else {}
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment | dict(variables or {}),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
