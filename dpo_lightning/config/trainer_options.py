"""Checks of Trainer options and launcher variables: values with which nothing is trained, or that are ignored."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import EarlyStopping

from dpo_lightning.config.class_paths import is_within, members
from dpo_lightning.config.strategies import check_strategy
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.launcher_variables import launched_by_srun

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
    "Timer": "ends training as if it were complete",
    "ModelPruning": "sets weights to 0 that the final model and the checkpoints have to have",
    "StochasticWeightAveraging": "is not restored from a checkpoint: a run that goes on would give other weights",
}
"""Callbacks of lightning that change what is trained, and why a run cannot have them."""

AVERAGES = dict.fromkeys(("WeightAveraging", "EMAWeightAveraging"), "copies models, which sharded ones do not allow")
"""Callbacks that a run with sharded models cannot have, and why."""

SMALLEST = {"patience": (0, 3), "max_depth": (-1, 1)}
"""Options of lightning's callbacks that fail in a run: the smallest value, and a usual one."""

REMEDIES = {
    "GradientAccumulationScheduler": "--trainer.accumulate_grad_batches with one number",
    "Timer": "--trainer.max_time, which stops the run so that the same command goes on",
    "StochasticWeightAveraging": "WeightAveraging or EMAWeightAveraging, which are restored exactly",
}


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
    if str(options.get("precision")) in ("64", "64-true"):
        problems.append(("precision", "is not supported: log-probabilities and losses are computed in float32"))
    if options.get("barebones"):
        problems.append(("barebones", "is not supported: it switches off measures, checks and checkpoints"))
    if problems:
        raise UserError(
            ExitCode.CONFIG,
            [Problem(f"{name}={options[name]} {what}", f"trainer.{name}") for name, what in problems],
            fix=f"change --trainer.{problems[0][0]}, or leave it out",
        )
    sharded = check_strategy(options.get("strategy"))
    if command == "fit":
        check_callbacks(options.get("callbacks"), AVERAGES if sharded else {})


def check_machine(trainer: Any, precision: Any) -> None:
    """Refuse float16 on a CPU, and devices that are not Slurm's tasks.

    On a CPU, small updates of weights in float16 vanish, and Lightning computes in bfloat16 in place of `16-mixed`.

    Args:
        trainer: the trainer, whose devices are chosen.
        precision: what the config has.

    Raises:
        UserError: 64, it is one of these.
    """
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "").partition("(")[0]
    if launched_by_srun() and tasks.isdecimal() and int(tasks) != trainer.num_devices:
        what = f"each machine has {tasks} tasks of Slurm (--ntasks-per-node) for {trainer.num_devices} devices"
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"{what}: a process would wait for others, or train alone", "trainer.devices"),
            fix=f"--trainer.devices {tasks}, or --ntasks-per-node={trainer.num_devices}",
        )
    if str(precision).startswith("16") and isinstance(trainer.accelerator, CPUAccelerator):
        raise UserError(
            ExitCode.CONFIG,
            Problem("float16 is not trained on a CPU", "trainer.precision", str(precision)),
            fix="--trainer.precision 32-true or bf16-mixed",
        )


def check_seed(seed: Any) -> None:
    """Refuse a seed that the random number generators do not take; true draws one.

    Raises:
        UserError: 64, it is out of range.
    """
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"seed_everything={seed} is not in 0 to 2**32 - 1", "seed_everything"),
            fix="--seed_everything 42",
        )


def check_callbacks(callbacks: Any, more: Mapping[str, str]) -> None:
    """Refuse callbacks of lightning that change what is trained.

    Args:
        callbacks: the parsed option: one, several or none.
        more: further callbacks that this run cannot have, and why.

    Raises:
        UserError: 64, with every such callback.
    """
    several = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    paths = [str(members(callback).get("class_path")) for callback in several if isinstance(callback, Namespace)]
    unfit = [path.rpartition(".")[2] for path in paths if is_within(path, ("lightning",))]
    reasons = {**UNFIT, **more}
    unfit = [name for name in unfit if name in reasons]
    for name, (least, good) in SMALLEST.items():
        values = [members(members(callback).get("init_args")).get(name) for callback in several]
        if any(isinstance(value, int) and value < least for value in values):
            what = Problem(f"{name} is less than {least}", f"trainer.callbacks.{name}")
            raise UserError(ExitCode.CONFIG, what, fix=f"--trainer.callbacks.{name} {good}")
    if unfit:
        raise UserError(
            ExitCode.CONFIG,
            [Problem(f"{name} {reasons[name]}", "trainer.callbacks") for name in unfit],
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


def read_max_time(trainer: Any) -> float | None:
    """Return the seconds of `trainer.max_time`, None without a limit."""
    value = members(trainer).get("max_time")
    return parse_duration(value).total_seconds() if isinstance(value, (str, dict)) else None


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
