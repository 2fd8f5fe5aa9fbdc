"""`EarlierRun`: what an earlier attempt has left in a run's folder, from which the same command goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpo_lightning.config.files import read_config
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import CHECKPOINTS, CONFIG, FINAL_MODEL, METRICS
from dpo_lightning.json_files import read_json
from dpo_lightning.log import is_first_process, logger
from dpo_lightning.runs.checkpoint_files import (
    LAST,
    PREVIOUS,
    find_checkpoint_of_run,
    find_later,
    remove_checkpoint,
    set_aside,
)
from dpo_lightning.runs.lineage import trained_steps
from dpo_lightning.runs.log_files import drop_later
from dpo_lightning.runs.resume import differences, find_limit, flatten, load_checkpoint, run_config, run_state
from dpo_lightning.runs.run_folder import RunFolder
from dpo_lightning.special_files import real_path

LIMITS = ("trainer.max_steps", "trainer.max_epochs")
"""Options that may be raised, to train a finished run further."""

FINAL = "final"
"""The entry of a run's measures with `--final`, unless that is `last`."""

CHOSEN = ("best_model_path", "kth_best_model_path", "last_model_path")
"""What the state of `ModelCheckpoint` names beside its `best_k_models`."""


class EarlierRun(NamedTuple):
    """An earlier attempt of the run that a command describes.

    Attributes:
        checkpoint: the newest whole checkpoint; None if the attempt ended before it wrote one.
        step: the optimizer steps that this checkpoint has; 0 without one.
        trained: whether no step is left.
        finished: whether the final model and its measures are written as well.
        damaged: newer checkpoints that cannot be used.
        fingerprint: of the run, as the checkpoint has it.
        logs: how far the files of its loggers were then; None if the checkpoint does not say it.
        kept: names of the other checkpoints that callbacks such as `ModelCheckpoint` had chosen by then.
    """

    checkpoint: Path | None
    step: int
    trained: bool
    finished: bool
    damaged: Sequence[Path] = ()
    fingerprint: Mapping[str, Any] = {}
    logs: Mapping[str, int] | None = {}
    kept: frozenset[str] = frozenset()

    @property
    def logged_step(self) -> int:
        """The last step of which logs are kept; -1 where the run begins again."""
        return -1 if self.checkpoint is None else self.step


def is_continued(folder: Path, ckpt_path: str | None) -> bool:
    """Whether a command continues the run in a folder: the run's configuration is there, and no other beginning.

    Args:
        folder: of the run.
        ckpt_path: what the command names by `--ckpt_path`, which may be the checkpoint of another run from which this
            one began.

    Raises:
        UserError: 64, the configuration of a run is damaged; 73, another process works in the folder.
    """
    try:
        if not (folder / CONFIG).is_file():
            return False
    except OSError:  # a name that is too long
        return False
    if is_first_process():  # which holds the folder for the others
        RunFolder(str(folder)).refuse_running()
    if run_config(folder / CHECKPOINTS / LAST) != real_path(folder / CONFIG):
        return False
    return ckpt_path is None or ckpt_path == read_config(str(folder / CONFIG)).get("ckpt_path")


def find_earlier_run(folder: Path, config: Mapping[str, Any]) -> EarlierRun:
    """Find how far a run has come, log it, and check that this command describes the same one.

    Args:
        folder: of the run.
        config: the whole configuration of this command.

    Raises:
        UserError: 73, the run has another configuration; 66, its checkpoints are damaged or removed.
    """
    now, recorded = dict(flatten(config)), folder / CONFIG
    before = dict(flatten(read_config(str(recorded))))
    problems = list(differences(before, now, str(recorded), "the run there"))
    if problems:
        raise UserError(
            ExitCode.OUTPUT,
            problems,
            fix=f"--config {recorded} to continue that run, --output_dir NAME (make: OUT=NAME) for another, or --fresh "
            "to move it aside",
        )
    run = read_progress(folder, now)
    if run.checkpoint is None and run.finished and any(before.get(key) != now.get(key) for key in LIMITS):
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem("the run is finished and its checkpoints were removed: it cannot be trained further", str(folder)),
            fix="begin a new run from its weights: --model.policy.path RUN/final_model",
        )
    written = read_final(folder)
    if run.finished and written != (now.get("final") or "last"):
        if run.checkpoint is None:
            raise UserError(
                ExitCode.INPUT_MISSING,
                Problem("the run is finished and its checkpoints were removed: other weights are gone", str(folder)),
                fix=f"--final {written}",
            )
        run = run._replace(finished=False)
    report(run, folder)
    return run


def read_progress(folder: Path, config: Mapping[str, Any]) -> EarlierRun:
    """Read how far a run has come.

    Args:
        folder: of the run.
        config: its options by their dotted keys.

    Raises:
        UserError: 66, its checkpoints are damaged or removed.
    """
    found = find_checkpoint_of_run(folder / CHECKPOINTS)
    if found is None:
        return EarlierRun(None, 0, trained=False, finished=read_step(folder) == trained_steps(folder / FINAL_MODEL) > 0)
    content = load_checkpoint(found.path)
    run = describe_checkpoint(found.path, content)
    trained = find_limit(content, config) is not None
    finished = trained and run.step == read_step(folder) == trained_steps(folder / FINAL_MODEL)
    return run._replace(trained=trained, finished=finished, damaged=found.damaged)


def describe_checkpoint(path: Path, content: Mapping[str, Any]) -> EarlierRun:
    """Describe the run that goes on from a checkpoint in its own folder."""
    state, kept = run_state(content), set[str]()
    for chosen in content.get("callbacks", {}).values():
        if isinstance(chosen, Mapping):
            best = chosen.get("best_k_models") or ()
            kept |= {Path(name).name for name in (*best, *(chosen.get(key) or "" for key in CHOSEN))}
    step, run, logs = int(content["global_step"]), dict(state.get("run", {})), state.get("logs")
    places = None if logs is None else {str(name): int(place) for name, place in logs.items()}
    return EarlierRun(path, step, False, False, (), run, places, frozenset(kept))


def rewind(run: EarlierRun, trainer: Any, folder: Path) -> None:
    """Take a run's folder back to the checkpoint from which the run goes on.

    What the run will write again is removed: points of its curves, and checkpoints that its `ModelCheckpoint` wrote
    later, beside which Lightning would write others under new names.

    Args:
        run: what is left of it.
        trainer: the trainer, with loggers and callbacks.
        folder: of the run.
    """
    set_aside(run.damaged)
    if run.trained:  # what is stopped before they are written is not finished
        (folder / METRICS).unlink(missing_ok=True)
    drop_later(trainer.loggers, run.logged_step, run.logs, folder)
    for callback in trainer.checkpoint_callbacks:
        place = Path(getattr(callback, "dirpath", None) or folder)
        if real_path(folder) in real_path(place).parents:
            kept = {*run.kept, LAST, PREVIOUS, *([run.checkpoint.name] if run.checkpoint else [])}
            removed = [name for name in find_later(place, run.step) if name not in kept]
            for name in removed:
                remove_checkpoint(place / name)
            if removed:
                logger.info(f"{place}: written again: {', '.join(removed)}")


def read_step(folder: Path) -> int:
    """Return the optimizer steps after which a run's measures were written; 0 without them."""
    try:
        return int(read_json(folder / METRICS)["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0


def read_final(folder: Path) -> str:
    """Return which weights a run was to leave in its final model when its measures were written: `last` or `best`."""
    try:
        return str(read_json(folder / METRICS).get(FINAL, "last"))
    except (OSError, ValueError, AttributeError):
        return "last"


def report(run: EarlierRun, folder: Path) -> None:
    """Log from where a run goes on."""
    if run.finished:
        logger.info(
            f"finished: {folder / FINAL_MODEL} is trained. To train further, raise --trainer.max_steps or "
            "--trainer.max_epochs; --fresh begins again"
        )
    elif run.checkpoint is None:
        logger.info(f"{folder}: the run ended before its first checkpoint, and begins again")
    elif run.trained:
        logger.info(f"continuing: all {run.step} steps are done; the model and its measures are written")
    else:
        logger.info(f"continuing after step {run.step} ({run.checkpoint})")
