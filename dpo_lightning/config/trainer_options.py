"""Checks of Trainer options and launcher variables: values with which nothing is trained, or that are ignored."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping

from dpo_lightning.config.class_paths import is_within, members
from dpo_lightning.errors import ExitCode, Problem, UserError

COUNTS = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "fast_dev_run": 0,
    "log_every_n_steps": 1,
    "max_epochs": 1,
    "max_steps": 1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": 0,
    "reload_dataloaders_every_n_epochs": 0,
}
"""Options that count something, and their smallest values."""

OPEN = ("max_epochs", "max_steps", "num_sanity_val_steps")
"""Options for which -1 means no limit."""

SHARES = {
    "limit_train_batches": ("fit",),
    "limit_val_batches": ("validate",),
    "limit_test_batches": ("test",),
    "limit_predict_batches": ("predict",),
    "overfit_batches": (),
    "val_check_interval": ("fit", "validate", "test", "predict", "precompute"),
}
"""Options that take a number of batches or a fraction, and the commands that do nothing if it is 0."""

LAUNCHERS = ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")
"""Variables, one of which a process has that was started together with those on other machines."""

UNFIT = {
    "BackboneFinetuning": "unfreezes a `backbone`, which this package's modules do not have",
    "BaseFinetuning": "does nothing by itself",
    "BatchSizeFinder": "changes a batch size that was settled before the model was loaded",
    "GradientAccumulationScheduler": "changes the size of a step, of which the plan and checkpoints have one",
    "LearningRateFinder": "trains before the run: config.yaml would have another learning rate than it",
    "ModelPruning": "sets weights to 0 that the final model and the checkpoints have to have",
    "StochasticWeightAveraging": "is not restored from a checkpoint: a run that goes on would give other weights",
}
"""Callbacks of lightning that change what is trained, and why a run cannot have them."""

REMEDIES = {
    "GradientAccumulationScheduler": "--trainer.accumulate_grad_batches with one number",
    "StochasticWeightAveraging": "WeightAveraging or EMAWeightAveraging, which are restored exactly",
}

RANKS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
VARIABLES = (*RANKS, *RANKS.values(), "NODE_RANK", "GROUP_RANK", "SLURM_LOCALID", "SLURM_NODEID")


def check_trainer(trainer: Any, command: str) -> None:
    """Refuse Trainer options with which nothing is trained, or that have no effect.

    Raises:
        UserError: 64, with every such option.
    """
    options = members(trainer)
    problems = [
        *check_counts(options),
        *check_batch_limits(options, command),
        *check_clipping(options),
        *check_times(options),
        *check_nodes(options),
    ]
    if options.get("default_root_dir") is not None:
        problems.append(("default_root_dir", "has no effect: the run's folder is output_dir"))
    if options.get("model_registry") is not None:
        problems.append(("model_registry", "is not supported: checkpoints are kept in output_dir"))
    if options.get("barebones"):
        problems.append(("barebones", "is not supported: it switches off measures, checks and checkpoints"))
    if problems:
        raise UserError(
            ExitCode.CONFIG,
            [Problem(f"{name}={options[name]} {what}", f"trainer.{name}") for name, what in problems],
            fix=f"change --trainer.{problems[0][0]}, or leave it out",
        )
    if command == "fit":
        check_callbacks(options.get("callbacks"))


def check_callbacks(callbacks: Any) -> None:
    """Refuse callbacks of lightning that change what is trained.

    Args:
        callbacks: the parsed option: one, several or none.

    Raises:
        UserError: 64, with every such callback.
    """
    several = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    paths = [str(members(callback).get("class_path")) for callback in several if isinstance(callback, Namespace)]
    unfit = [path.rpartition(".")[2] for path in paths if is_within(path, ("lightning",))]
    unfit = [name for name in unfit if name in UNFIT]
    if unfit:
        raise UserError(
            ExitCode.CONFIG,
            [Problem(f"{name} {UNFIT[name]}", "trainer.callbacks") for name in unfit],
            fix=REMEDIES.get(unfit[0], "leave it out"),
        )


def set_stopping_interval(trainer: Any) -> None:
    """Make `EarlyStopping` on a held-out measure run after evaluations only.

    By default it runs at the end of a training epoch too. A run that `max_steps` ends before its first evaluation has
    no such measure there, and would fail after its last step.
    """
    several = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]
    for callback in several if trainer.limit_val_batches else ():
        if callback.monitor.startswith("eval/") and callback._check_on_train_epoch_end is None:
            callback._check_on_train_epoch_end = False


def check_counts(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over options that count something, and what is wrong with them."""
    for name, least in COUNTS.items():
        value = options.get(name)
        if isinstance(value, int) and value < least and not (value == -1 and name in OPEN):
            yield name, f"is less than {least}"
    for unit in ("epochs", "steps"):
        wanted, most = options.get(f"min_{unit}"), options.get(f"max_{unit}")
        if isinstance(wanted, int) and isinstance(most, int) and 0 < most < wanted:
            yield f"min_{unit}", f"is more than max_{unit}={most}, which ends the run"


def check_batch_limits(options: dict[str, Any], command: str) -> Iterator[tuple[str, str]]:
    """Iterate over options that limit batches, and what is wrong with them."""
    for name, commands in SHARES.items():
        value = options.get(name)
        if not isinstance(value, (int, float)):
            continue
        if value == 0 and command in commands:
            yield name, "leaves no batch"
        elif not (value >= 0 if isinstance(value, int) else 0 <= value <= 1):
            yield name, "is neither a number of batches nor a fraction (0.0 to 1.0)"


def check_nodes(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over what is wrong with several nodes: without a launcher, a process would wait forever."""
    nodes = options.get("num_nodes")
    known = any(name in os.environ for name in LAUNCHERS) or options.get("plugins")
    if isinstance(nodes, int) and nodes > 1 and not known:
        yield "num_nodes", "needs a launcher such as torchrun or srun, or MASTER_ADDR and NODE_RANK on each machine"


def check_clipping(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over options of gradient clipping, and what is wrong with them."""
    value = options.get("gradient_clip_val")
    if value is not None and not (math.isfinite(value) and value >= 0):
        yield "gradient_clip_val", "is not a finite number of 0 or more"
    if options.get("gradient_clip_algorithm") is not None and not value:
        yield "gradient_clip_algorithm", "has no effect without gradient_clip_val"


def check_times(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over options that hold a time, and what is wrong with them."""
    for name in ("max_time", "val_check_interval"):
        value = options.get(name)
        if isinstance(value, (str, dict)) and not parse_duration(value) > timedelta():
            yield name, "is not a time above 0; write DD:HH:MM:SS"


def parse_duration(value: str | dict[str, int]) -> timedelta:
    """Return the time that an option holds; zero if it is invalid."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+):(\d+):(\d+):(\d+)\s*", value)
        days, hours, minutes, seconds = map(int, match.groups()) if match else (0, 0, 0, 0)
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    try:
        return timedelta(**value)
    except (TypeError, OverflowError):
        return timedelta()


def check_environment() -> None:
    """Refuse launcher variables that are no numbers, and ranks that are not below the number of processes.

    Raises:
        UserError: 64, with every such variable.
    """
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    problems = [
        Problem("this is not a rank or a number of processes", f"the environment's {name}", value)
        for name, value in found.items()
        if not (value.isascii() and value.isdecimal()) or (name in RANKS.values() and int(value) == 0)
    ]
    for rank, size in RANKS.items():
        # A RANK without a WORLD_SIZE means one process.
        count = found.get(size, "1" if rank == "RANK" else None)
        if not problems and rank in found and count is not None and int(found[rank]) >= int(count):
            problems.append(Problem(f"{rank}={found[rank]} is not below {size}={count}", "the environment"))
    if problems:
        names = " ".join(name for name in found if name in str(problems))
        raise UserError(ExitCode.CONFIG, problems, fix=f"unset {names}, or start the processes by torchrun or srun")
