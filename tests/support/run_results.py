"""What a run comes to, and how two runs differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from dpo_lightning.runs.checkpoint_files import CheckpointFiles
from dpo_lightning.runs.log_files import EVENTS


class RunResult(NamedTuple):
    """Everything of a run that has to be the same for an equal one."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    metrics: dict[str, Any]
    curves: dict[str, list[tuple[int, float]]]
    step: int


def read_run(folder: Path) -> RunResult:
    """Read the result of a run from its folder: of its checkpoints, the newest one."""
    checkpoints = [CheckpointFiles().load_checkpoint(path) for path in sorted((folder / "checkpoints").glob("*.ckpt"))]
    checkpoint = max(checkpoints, key=lambda content: content["global_step"])
    states = checkpoint["optimizer_states"][0]["state"]
    (weights,) = (folder / "final_model").glob("*model.safetensors")
    return RunResult(
        load_file(weights),
        {f"{key} {name}": value for key, state in states.items() for name, value in state.items()},
        json.loads((folder / "metrics.json").read_text()),
        read_curves(folder),
        checkpoint["global_step"],
    )


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard shows of a run: name -> steps and values.

    Files of one second are read in the order of their names as texts. Where many runs share a process, their numbers
    have several digits.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TemporaryDirectory() as ordered:
        for path in (folder / "tensorboard").glob(EVENTS):
            name, _, number = path.name.rpartition(".")
            shutil.copy(path, Path(ordered, f"{name}.{int(number):06}"))
        events = EventAccumulator(ordered)
        events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def find_difference(one: RunResult, other: RunResult) -> str:
    """Name what differs between two runs; empty where nothing does."""
    for kind in ("weights", "optimizer"):
        mine, theirs = getattr(one, kind), getattr(other, kind)
        if mine.keys() != theirs.keys():
            return f"names of {kind}"
        for name, value in mine.items():
            if not torch.equal(value, theirs[name]):
                return f"{kind}: {name}"
    for kind in ("metrics", "step"):
        if getattr(one, kind) != getattr(other, kind):
            return f"{kind}: {getattr(one, kind)} and {getattr(other, kind)}"
    for name in sorted(one.curves.keys() | other.curves.keys()):
        if one.curves.get(name) != other.curves.get(name):
            return f"curve {name}: {one.curves.get(name)} and {other.curves.get(name)}"
    return ""
