"""Checks of a checkpoint before a run resumes from it: a checkpoint restores weights and state, no hyperparameters."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch

from dpo_lightning.config.files import read_config
from dpo_lightning.data.resumable_loader import check_complete, check_window, window_start
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import CONFIG
from dpo_lightning.log import logger
from dpo_lightning.runs.checkpoint_files import is_whole_archive
from dpo_lightning.runs.run_folder import LOCK
from dpo_lightning.special_files import check_not_special, real_path

KEY = "ckpt_path"
DATE, PRECISION = "data.init_args.template_date", "trainer.precision"
COMPARED = (
    "model",
    "data",
    "seed_everything",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.precision",
)
"""Keys of the configuration that have to be equal to resume, with everything below them."""
FREE = ("data.init_args.num_workers", "data.init_args.eval", "data.init_args.batch_size")
"""Keys below these that do not affect training; the rows of a step are compared as such (`fingerprint.py`)."""

SECTIONS = {"model", "data", "trainer", "output_dir"}
"""Sections by which a `config.yaml` is recognized as one of a run."""

WEIGHTS = {"state_dict", "global_step", "pytorch-lightning_version"}
"""Entries of every checkpoint, also of one with `save_weights_only`."""

PARTS = {*WEIGHTS, "loops", "optimizer_states"}
"""Entries of a checkpoint from which a run resumes."""


def check_checkpoint(path: str, config: Mapping[str, Any], *, compare: bool) -> Mapping[str, Any]:
    """Refuse a file that is no checkpoint, or one whose run had other hyperparameters than this command.

    Args:
        path: the value of `--ckpt_path`.
        config: the whole configuration of this command.
        compare: whether training is resumed, so that hyperparameters have to agree.

    Returns:
        The content of the checkpoint.

    Raises:
        UserError: 66, the file is missing, damaged or no checkpoint; 64, it is no local file, or the configurations
            differ.
    """
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    for place in loader_states(content):
        check_complete(place)
    if not compare:
        return content
    recorded = run_config(file)
    now = dict(flatten(config))
    if recorded is not None:
        problems = list(differences(dict(flatten(read_config(str(recorded)))), now, str(recorded)))
        fix = f"resume with --config {recorded}, or start a new run from --model.policy.path RUN/final_model"
    else:
        logger.info(
            f"note: no {CONFIG} in the folders that contain {file}: only the learning rate was compared with the "
            "checkpoint's run"
        )
        problems = list(other_rates(content, now))
        fix = "use the run's --model.learning_rate"
    if problems:
        raise UserError(ExitCode.CONFIG, problems, fix=fix)
    check_progress(content, now)
    return content


def find_checkpoint(path: str) -> Path:
    """Return the file that `--ckpt_path` names.

    Raises:
        UserError: it is not a local `.ckpt` file (64), or the file is missing or cannot be read (66).
    """
    if "://" in path or not path.endswith(".ckpt"):
        raise UserError(
            ExitCode.CONFIG,
            Problem("a checkpoint is a local .ckpt file", KEY, path),
            fix="--ckpt_path outputs/RUN/checkpoints/last.ckpt; to start a new run from trained weights: "
            "--model.policy.path outputs/RUN/final_model",
        )
    file, reason = Path(path), "the checkpoint does not exist"
    try:
        check_not_special(file)
        if file.is_file():
            return file
    except OSError as error:  # a link that leads back to itself, a name too long, a folder that may not be entered
        reason = f"the checkpoint cannot be read: {error.strerror}"
    found = ", ".join(str(path) for path in sorted(file.parent.glob("*.ckpt")) if path.is_file()) or "none"
    raise UserError(ExitCode.INPUT_MISSING, Problem(reason, KEY, path), fix=f"checkpoints in this folder: {found}")


def run_config(file: Path) -> Path | None:
    """Find the configuration of the run in whose folder a checkpoint is, at any depth: run names may have slashes."""
    for folder in real_path(file).parents:
        path = folder / CONFIG
        try:
            if path.exists() and read_config(str(path)).keys() >= SECTIONS:  # `read_config` refuses pipes
                return path
        except UserError:
            if (folder / LOCK).exists():  # the configuration of a run, not of another program
                raise
    return None


def take_recorded(recorded: Path | None, config: Any) -> None:
    """Take the template's date and the precision from a run's configuration, where this command leaves them open.

    Args:
        recorded: the configuration; None leaves all as it is.
        config: this command's, which is changed.
    """
    before = {} if recorded is None else dict(flatten(read_config(str(recorded))))
    options = config.data.init_args
    if options.get("template_date") is None and before.get(DATE) is not None:
        options.template_date = before[DATE]
        logger.info(f"template_date: {before[DATE]}, from the checkpoint's run")
    if config.trainer.precision is None and before.get(PRECISION) is not None:
        config.trainer.precision = before[PRECISION]
        logger.info(f"precision: {before[PRECISION]}, from the checkpoint's run")


def check_progress(content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse to resume a finished run, and warn if the position within an epoch is unknown.

    Args:
        content: of the checkpoint.
        config: dotted keys and values of this command.

    Raises:
        UserError: the run has reached its `max_epochs` or `max_steps`.
    """
    loop = content["loops"]["fit_loop"]
    place = next(iter(loader_states(content)), None)
    reached = find_limit(content, config)
    if reached is not None:
        name, done, limit = reached
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"training is complete: the checkpoint has {done} of {limit}", f"trainer.{name}"),
            fix=f"--trainer.{name} {done + 1} or more",
        )
    window = config.get("trainer.accumulate_grad_batches", 1)
    if place:
        window_start(place, window)
        return
    check_window(loop["epoch_loop.batch_progress"], window)
    if not loop["epoch_loop.batch_progress"]["is_last_batch"]:
        logger.warning("the checkpoint is from within an epoch, and has no position in the data from which to continue")


def find_limit(content: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """Return the limit that ends the run of a checkpoint: its name, what is done, and its value; None if none does.

    Args:
        content: of the checkpoint.
        config: dotted keys and values of this command.
    """
    limits = {name: config.get(f"trainer.{name}") for name in ("max_epochs", "max_steps")}
    place = next(iter(loader_states(content)), None)  # Lightning counts an epoch cut short by max_steps as finished
    epochs = place["epoch"] if place else content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    for name, done in (("max_epochs", epochs), ("max_steps", content["global_step"])):
        limit = limits[name]
        if isinstance(limit, int) and 0 <= limit <= done:
            return name, done, limit
    state = run_state(content)
    ended = state.get("ended")  # by EarlyStopping
    if ended == [limits["max_steps"], limits["max_epochs"]] or (ended is None and state.get("should_stop")):
        return "max_steps", content["global_step"], content["global_step"]
    return None


def run_state(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `RunCheckpoints` has stored in a checkpoint; empty for one of another program."""
    found = content.get("callbacks", {}).get("RunCheckpoints", {})
    return found if isinstance(found, Mapping) else {}


def loader_states(content: Mapping[str, Any]) -> list[Mapping[str, int]]:
    """Return the position in the data that the loader stored; empty for checkpoints of other programs."""
    found: list[Mapping[str, int]] = content["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    return found


def read_checkpoint(file: Path, parts: Set[str] = PARTS) -> Mapping[str, Any]:
    """Read a checkpoint without running code from it; its tensors stay on disk.

    Args:
        file: the checkpoint.
        parts: the entries that it has to have.

    Raises:
        UserError: the file is damaged, no checkpoint, lacks one of the entries, or holds pickled objects.
    """
    try:
        whole = is_whole_archive(file)  # damaged tensors would load without an error
    except OSError:
        whole = False
    if not whole:
        raise checkpoint_error("the checkpoint is damaged", file)
    return load_checkpoint(file, parts)


def load_checkpoint(file: Path, parts: Set[str] = PARTS) -> Mapping[str, Any]:
    """Read a checkpoint whose checksum has been compared.

    Args:
        file: the checkpoint.
        parts: the entries that it has to have.

    Raises:
        UserError: as in `read_checkpoint`.
    """
    reason = "this is not a checkpoint of a run"
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if isinstance(content, Mapping) and content.keys() >= parts:
            return content
        if isinstance(content, Mapping) and content.keys() >= WEIGHTS:
            reason = "this checkpoint has weights alone (save_weights_only), which only infer and export read"
    except pickle.UnpicklingError:
        reason = "the checkpoint holds pickled objects, which may run code and are not loaded"
    except Exception:  # damaged bytes lead zipfile and torch to errors of many kinds
        pass
    raise checkpoint_error(reason, file)


def checkpoint_error(reason: str, file: Path) -> UserError:
    """Make the error for a checkpoint that cannot be used."""
    return UserError(
        ExitCode.INPUT_MISSING, Problem(reason, KEY, str(file)), fix="use an earlier checkpoint, or start a new run"
    )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], where: str, whose: str = "the checkpoint's run"
) -> Iterator[Problem]:
    """Iterate over changed hyperparameters, as problems; a precision that this command leaves open is no change."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        compared = any(f"{key}.".startswith(f"{name}.") for name in COMPARED) and key not in FREE
        if compared and old != new and not (key == PRECISION and new is None):
            yield Problem(f"{format_key(key)} is {new!r}, {whose} had {old!r}", where)


def other_rates(content: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Problem]:
    """Iterate over learning rates in the optimizer's state that differ from the configuration's, as problems."""
    rate = now.get("model.init_args.learning_rate")
    groups = [group for state in content["optimizer_states"] for group in state["param_groups"]]
    for old in sorted({group.get("initial_lr", group["lr"]) for group in groups} - {rate}):
        yield Problem(f"model.learning_rate is {rate}, the checkpoint's run had {old}", KEY)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over dotted keys and values of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def format_key(key: str) -> str:
    """Return the key as it is written on the command line."""
    return key.replace("init_args.", "")
