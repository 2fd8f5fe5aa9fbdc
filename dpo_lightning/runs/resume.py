"""What a checkpoint may bring into a run: weights and optimizer state, never a hyperparameter."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dpo_lightning.config.files import read_config
from dpo_lightning.data.resumable_loader import check_whole, check_window, window_start
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.runs.folder import CONFIG, LOCK
from dpo_lightning.special_files import check_not_special

KEY = "ckpt_path"
DATE = "data.init_args.template_date"
COMPARED = (
    "model",
    "data",
    "seed_everything",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "trainer.precision",
)
FREE = ("data.init_args.num_workers", "data.init_args.eval")
"""Keys that change nothing in what is trained."""

SECTIONS = {"model", "data", "trainer", "output_dir"}
"""What a run's configuration holds, and another file of this name hardly."""

PARTS = {"state_dict", "loops", "optimizer_states", "global_step", "pytorch-lightning_version"}
"""What a checkpoint of `fit` holds at least."""


def check_checkpoint(path: str, config: Mapping[str, Any], *, compare: bool) -> None:
    """Refuse a checkpoint that is none, or whose run had other hyperparameters than this command.

    Args:
        path: the value of `--ckpt_path`.
        config: the whole configuration of this command.
        compare: whether training goes on, so that hyperparameters have to agree.

    Raises:
        UserError: the file is missing, damaged or no checkpoint (66), no local file (64), or the configs differ (64).
    """
    file = find_checkpoint(path)
    content = read_checkpoint(file)
    for place in places(content):
        check_whole(place)
    if not compare:
        return
    recorded = run_config(file)
    now = dict(flat(config))
    if recorded is not None:
        problems = list(differences(dict(flat(read_config(str(recorded)))), now, str(recorded)))
        fix = f"--config {recorded} goes on with that run; --model.policy.path RUN/final_model starts a new one"
    else:
        logger.info(
            f"note: its run's {CONFIG} is not above {file}: of its options, the learning rate is compared, no other"
        )
        problems = list(other_rates(content, now))
        fix = "--model.learning_rate as the run had it"
    if problems:
        raise UserError(ExitCode.CONFIG, problems, fix=fix)
    check_progress(content, now)


def find_checkpoint(path: str) -> Path:
    """The file that `--ckpt_path` names.

    Raises:
        UserError: it names no local file of this kind (64), or none that is there and can be looked at (66).
    """
    if "://" in path or not path.endswith(".ckpt"):
        raise UserError(
            ExitCode.CONFIG,
            Problem("a checkpoint is a local .ckpt file", KEY, path),
            fix="--ckpt_path outputs/RUN/checkpoints/last.ckpt; to start a new run from trained weights: "
            "--model.policy.path outputs/RUN/final_model",
        )
    file, reason = Path(path), "there is no such checkpoint"
    try:
        check_not_special(file)
        if file.is_file():
            return file
    except OSError as error:  # a link that leads back to itself, a name too long, a folder that may not be entered
        reason = f"the checkpoint cannot be read: {error.strerror}"
    found = ", ".join(str(path) for path in sorted(file.parent.glob("*.ckpt")) if path.is_file()) or "none"
    raise UserError(ExitCode.INPUT_MISSING, Problem(reason, KEY, path), fix=f"there are: {found}")


def run_config(file: Path) -> Path | None:
    """The configuration of the run whose folder a checkpoint lies in, however deep: its name may hold a slash."""
    for folder in file.resolve().parents:
        path = folder / CONFIG
        try:
            if path.exists() and read_config(str(path)).keys() >= SECTIONS:  # a pipe exists, and is refused
                return path
        except UserError:
            if (folder / LOCK).exists():  # a run's own, and not another program's
                raise
    return None


def take_date(path: str, config: Any) -> None:
    """Go on with the date that the checkpoint's run wrote into its prompts, where this command names none.

    Args:
        path: the checkpoint; its run's folder holds the configuration.
        config: this command's, which is changed.
    """
    recorded = run_config(find_checkpoint(path))
    options = config.data.init_args
    if options.get("template_date") is not None or recorded is None:
        return
    before = dict(flat(read_config(str(recorded)))).get(DATE)
    if before is not None:
        options.template_date = before
        logger.info(f"template_date: {before}, as the checkpoint's run had it")


def check_progress(content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse to go on where nothing is left to do, and say where an epoch was left in its middle.

    Args:
        content: what the checkpoint holds.
        config: dotted keys and values of this command.
    """
    loop = content["loops"]["fit_loop"]
    place = next(iter(places(content)), None)  # lightning's count takes an epoch cut by max_steps for whole
    epochs = place["epoch"] if place else loop["epoch_progress"]["current"]["processed"]
    steps = content["global_step"]
    for name, done in (("max_epochs", epochs), ("max_steps", steps)):
        limit = config.get(f"trainer.{name}")
        if isinstance(limit, int) and 0 <= limit <= done:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"nothing is left to train: the checkpoint has {done} of {limit}", f"trainer.{name}"),
                fix=f"--trainer.{name} {done + 1} or more",
            )
    window = config.get("trainer.accumulate_grad_batches", 1)
    if place:
        window_start(place, window)
        return
    check_window(loop["epoch_loop.batch_progress"], window)
    if not loop["epoch_loop.batch_progress"]["is_last_batch"]:
        logger.warning(
            "the checkpoint lies in the middle of an epoch, whose rows are not taken up where they were left"
        )


def places(content: Mapping[str, Any]) -> list[Mapping[str, int]]:
    """Where training is, as the loader wrote it; nothing for the checkpoint of another package."""
    found: list[Mapping[str, int]] = content["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    return found


def read_checkpoint(file: Path) -> Mapping[str, Any]:
    """What a checkpoint holds; its tensors stay on disk, code in it is never run."""
    reason = "the checkpoint is damaged"
    try:
        with zipfile.ZipFile(file) as archive:
            whole = archive.testzip() is None
        if whole:
            reason = "this is no checkpoint of a run"
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            if isinstance(content, Mapping) and content.keys() >= PARTS:
                return content
    except pickle.UnpicklingError:
        reason = "the checkpoint holds more than weights and numbers, which is never run"
    except Exception:  # damaged bytes lead zipfile and torch to errors of many kinds
        pass
    raise UserError(
        ExitCode.INPUT_MISSING, Problem(reason, KEY, str(file)), fix="give an earlier checkpoint, or start anew"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Hyperparameters that are not what they were; a precision that was left open is no difference."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        compared = any(f"{key}.".startswith(f"{name}.") for name in COMPARED) and key not in FREE
        if compared and old != new and not (key == "trainer.precision" and new is None):
            yield Problem(f"{spoken(key)} is {new!r}, the checkpoint's run had {old!r}", where)


def other_rates(content: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Problem]:
    """Learning rates that the optimizer's state would bring along in place of the config's."""
    rate = now.get("model.init_args.learning_rate")
    groups = [group for state in content["optimizer_states"] for group in state["param_groups"]]
    for old in sorted({group.get("initial_lr", group["lr"]) for group in groups} - {rate}):
        yield Problem(f"model.learning_rate is {rate}, the checkpoint's run had {old}", KEY)


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
