"""`search`: Optuna chooses the points, where more keys are swept than a grid can hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.special_files import check_not_special
from dpo_lightning.sweeps.grid import make_points
from dpo_lightning.sweeps.manifest import FILE, STUDY, check_new, writing_reported

if TYPE_CHECKING:
    from optuna import Study, Trial

LOG_RATIO = 10
"""Ratio of a range's ends from which it is searched on a logarithmic scale."""

DIGITS = 4
"""Significant digits of a value that is tried."""

Range = tuple[float, float] | tuple[int, int]


def parse_space(over: Mapping[str, Sequence[str]]) -> dict[str, Range | list[str]]:
    """Return what is searched: key -> the ends of a range that is written `low..high`, or the values to choose from.

    Raises:
        UserError: 64, a range is empty or no range of finite numbers, or two values would name the same folder.
    """
    space: dict[str, Range | list[str]] = {}
    for key, texts in over.items():
        space[key] = list(texts)
        if len(texts) == 1 and ".." in texts[0]:
            low, _, high = texts[0].partition("..")
            with suppress(ValueError):
                ends = float(low), float(high)
                if ends[0] < ends[1] and math.isfinite(ends[1] - ends[0]):
                    whole = re.fullmatch(r"-?\d+", low) and re.fullmatch(r"-?\d+", high)
                    space[key] = (int(low), int(high)) if whole else ends
            if not isinstance(space[key], tuple):
                what = Problem("no range of finite numbers", f"--over {key}", texts[0])
                raise UserError(ExitCode.CONFIG, what, fix="--over model.loss.beta 0.01..0.5")
        else:
            make_points({key: texts}, [])  # which refuses such values
    return space


def open_study(folder: Path) -> Study:
    """Open the study in a sweep's folder, or make one; it maximizes the held-out accuracy.

    Raises:
        UserError: 64, Optuna is not installed; 73, the folder holds something else than a search.
    """
    try:
        import optuna
    except ImportError:
        what = Problem("Optuna is not installed", "--engine")
        raise UserError(ExitCode.CONFIG, what, fix="pip install 'dpo-lightning[sweep]'") from None
    if (folder / FILE).exists() and not (folder / STUDY).exists():
        what = Problem("the folder holds the sweep of a grid", "output_dir", str(folder))
        raise UserError(ExitCode.OUTPUT, what, fix="--output_dir NAME for another sweep")
    check_new(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with writing_reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_not_special(folder / STUDY)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / STUDY}", study_name="sweep", direction="maximize", load_if_exists=True
        )
    except Exception as error:  # of SQLAlchemy and of Optuna, of many kinds
        what = Problem("the study cannot be opened", str(folder / STUDY), f"{type(error).__name__}: {error}")
        raise UserError(ExitCode.DATA, what, fix="move the folder away, or --output_dir NAME") from None
    # With the same seed, a study that continues would try its first values again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    return study


def search(
    study: Study,
    space: Mapping[str, Range | list[str]],
    trials: int,
    batch: int,
    evaluate: Callable[[list[dict[str, str]]], list[float | None]],
) -> None:
    """Try points until the study has as many trials as wanted; those that a killed process left are finished first.

    Args:
        study: of the sweep.
        space: as `parse_space` returns it.
        trials: in all.
        batch: points at a time.
        evaluate: carries out points and returns the accuracy of each, None if it failed.
    """
    from optuna.trial import TrialState

    left = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    for trial in [trial for trial in left if trial.params.keys() != space.keys()]:  # killed before it had all values
        study.tell(trial.number, state=TrialState.FAIL)
        left.remove(trial)
    while left or len(study.trials) < trials:
        chosen = {trial.number: to_texts(trial.params) for trial in left[:batch]}
        left = left[batch:]
        while len(chosen) < batch and len(study.trials) < trials:
            new = study.ask()
            chosen[new.number] = to_texts({key: suggest(new, key, ends) for key, ends in space.items()})
        for number, value in zip(chosen, evaluate(list(chosen.values())), strict=True):
            study.tell(number, value, state=TrialState.FAIL if value is None else None)
        logger.info(f"sweep: {len(study.trials) - len(left)} of {trials} trials")


def suggest(trial: Trial, key: str, ends: Range | list[str]) -> Any:
    """Let a trial choose a value of a key."""
    if isinstance(ends, list):
        return trial.suggest_categorical(key, ends)
    low, high = ends
    log = low > 0 and high / low >= LOG_RATIO
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=log)
    return trial.suggest_float(key, low, high, log=log)


def to_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a trial as overrides of a point."""
    return {key: f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value) for key, value in params.items()}
