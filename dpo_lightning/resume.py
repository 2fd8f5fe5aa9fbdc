"""What a checkpoint may bring into a run: weights and optimizer state, never a hyperparameter."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.parsing import read_config
from dpo_lightning.run_folder import CONFIG

KEY = "ckpt_path"
COMPARED = ("model", "data", "seed_everything")
FREE = ("data.init_args.num_workers", "data.init_args.eval")
"""Keys that change nothing in what is trained."""


def check_checkpoint(path: str, config: Mapping[str, Any], *, compare: bool) -> None:
    """Refuse a checkpoint that is none, or whose run had other hyperparameters than this command.

    Args:
        path: the value of `--ckpt_path`.
        config: the whole configuration of this command.
        compare: whether training goes on, so that hyperparameters have to agree.

    Raises:
        UserError: the file is missing or damaged (66), no local file (64), or the configs differ (64).
    """
    if "://" in path or not path.endswith(".ckpt"):
        raise UserError(
            ExitCode.CONFIG,
            Problem("a checkpoint is a local .ckpt file", KEY, path),
            fix="--ckpt_path outputs/RUN/checkpoints/last.ckpt; to start a new run from trained weights: "
            "--model.policy.path outputs/RUN/final_model",
        )
    file = Path(path)
    if not file.is_file():
        found = ", ".join(map(str, sorted(file.parent.glob("*.ckpt")))) or "none"
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem("there is no such checkpoint", KEY, path),
            fix=f"there are: {found}",
        )
    if not zipfile.is_zipfile(file):
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem("the checkpoint is damaged", KEY, path),
            fix="give an earlier checkpoint",
        )
    recorded = file.parent.parent / CONFIG
    if not compare or not recorded.exists():
        return
    before, now = dict(flat(read_config(str(recorded)))), dict(flat(config))
    problems = [
        Problem(f"{spoken(key)} is {now.get(key)!r}, the checkpoint's run had {before.get(key)!r}", str(recorded))
        for key in sorted(before.keys() | now.keys())
        if key.split(".")[0] in COMPARED and key not in FREE and before.get(key) != now.get(key)
    ]
    if problems:
        raise UserError(
            ExitCode.CONFIG,
            problems,
            fix=f"--config {recorded} goes on with that run; --model.policy.path RUN/final_model starts a new one",
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def spoken(key: str) -> str:
    """The key as a user writes it on the command line."""
    return key.replace("init_args.", "")


def dropped_options(files: Sequence[Mapping[str, Any]], config: Any) -> Iterator[str]:
    """Options of a file's loss that are gone because a flag named another loss class."""
    for content in files:
        model = content.get("model") or {}
        loss = (model.get("init_args") or model).get("loss") if isinstance(model, Mapping) else None
        if not isinstance(loss, Mapping) or "class_path" not in loss:
            continue
        now = config.model.init_args.get("loss")
        before, after = str(loss["class_path"]).rpartition(".")[2], now.class_path.rpartition(".")[2]
        if before == after:
            continue
        kept = now.init_args.as_dict()
        options = loss.get("init_args") or {}
        lost = [f"{name}={value}" for name, value in options.items() if kept.get(name) != value]
        if lost:
            yield f"--model.loss {after} takes the place of {before}; dropped from the file: {', '.join(lost)}"
