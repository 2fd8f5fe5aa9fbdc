"""`Pace`: how fast training steps are, without evaluations, and how long the steps to come will take."""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

from lightning.pytorch import Trainer

from dpo_lightning.activity import format_duration
from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.callbacks.preference_accuracy import PreferenceAccuracy
from dpo_lightning.callbacks.ranked_rewards import RankedRewards
from dpo_lightning.callbacks.reward_margins import RewardMargins
from dpo_lightning.callbacks.unpaired_rewards import UnpairedRewards

UNITS = {PreferenceAccuracy: "pairs", RewardMargins: "pairs", RankedRewards: "lists", UnpairedRewards: "answers"}
"""Measures -> what a row of their run is; `rows` for others."""

NAMES = {"accuracies": "accuracy", "margins": "margin"}
"""Names of measures in a line, where they differ from those of the curves."""

ORDER = ("loss", "accuracies", "margins")
"""Measures that come first in a line."""


class Pace:
    """Counts the seconds and the rows of the training steps that this process has taken."""

    def __init__(self) -> None:
        """Begin at step 0; `begin` is called once the step of a resumed run is known."""
        self.step = 0
        """The step with which this process began."""
        self._seconds, self._rows = 0.0, 0
        self._batch_began: float | None = None

    def begin(self, step: int) -> None:
        """Begin at a step."""
        self.__init__()  # type: ignore[misc]
        self.step = step

    def start_batch(self) -> None:
        """Note the begin of a micro-batch, where the one before has not ended just now."""
        if self._batch_began is None:
            self._batch_began = monotonic()

    def end_batch(self, rows: int) -> None:
        """Count a micro-batch; its time is that since the one before, loading included."""
        now = monotonic()
        self._seconds += now - (now if self._batch_began is None else self._batch_began)
        self._rows += rows
        self._batch_began = now

    def pause(self) -> None:
        """Leave out the time until the next batch begins."""
        self._batch_began = None

    def describe(self, trainer: Any) -> list[str]:
        """Return the rows per second of all ranks, and the time left; nothing before the first step has ended."""
        steps, total = trainer.global_step - self.step, trainer.estimated_stepping_batches
        if not steps:
            return []
        speed = self._rows * trainer.world_size / max(self._seconds, 1e-9)
        found = [f"{speed:.3g} {find_unit(trainer)}/s" if speed < 1000 else f"{speed:,.0f} {find_unit(trainer)}/s"]
        left = total - trainer.global_step
        if 0 < left < math.inf:
            found.append(f"{format_duration(self._seconds / steps * left)} left")
        return found


def find_unit(trainer: Any) -> str:
    """Return what the rows of a run are."""
    return next((UNITS[kind] for c in trainer.callbacks for kind in UNITS if isinstance(c, kind)), "rows")


def count_batch(batch: Any) -> int:
    """Return the number of rows of a micro-batch; 0 for one that is not of this package."""
    indices = getattr(batch, "indices", None)
    return 0 if indices is None else len(indices)


def find_means(trainer: Trainer) -> dict[str, float]:
    """Return the training means of the last log line that callbacks show, by their names in a line."""
    found: dict[str, float] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, MeasureCallback):
            known = {name: callback.logged.get(f"train/{name}") for name in callback.shown}
            found |= {name.rpartition("/")[2]: value for name, value in known.items() if value is not None}
    names = sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return {NAMES.get(name, name): found[name] for name in names}
