"""`ProgressLog`: lines on the progress of training and evaluation, where no progress bar is shown."""

from __future__ import annotations

import math
import sys
from time import monotonic
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from dpo_lightning.activity import format_duration
from dpo_lightning.callbacks.pace import Pace, count_batch, find_means
from dpo_lightning.data.samplers import BatchOrder
from dpo_lightning.log import logger

SECONDS = 2.0
"""Least time between two lines on evaluations that begin."""


class ProgressLog(Callback):
    """Log progress as plain lines, by the first process, where Lightning's progress bar is not shown.

    A bar is not shown where it is switched off, and where stdout is no terminal, as a file or a notebook: it is then
    disabled, since a file would hold each of its states. Training is logged every `log_every_n_steps` steps, with the
    means of these steps, the rows per second and the time left, and evaluation and prediction at their start. A line
    also follows after `every_n_seconds` without one.
    """

    def __init__(self, every_n_seconds: float = 30.0) -> None:
        """Choose how often lines are logged.

        Args:
            every_n_seconds: longest time without a line, in seconds, as far as single batches do not take longer.
        """
        self.every_n_seconds = every_n_seconds
        self._active = False
        self._logged_at = self._evaluation_logged_at = self._evaluating_since = -math.inf
        self._pace = Pace()
        self._logged_step = 0
        self._due = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out whether a progress bar is shown, and disable one that would be written to a file."""
        bar = trainer.progress_bar_callback
        terminal = sys.stdout.isatty()
        if bar is not None and hasattr(bar, "is_disabled") and not terminal:
            bar.disable()
        self._active = trainer.is_global_zero and (bar is None or getattr(bar, "is_disabled", not terminal))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the step of a resumed run."""
        self._pace.begin(trainer.global_step)
        self._logged_step, self._due, self._logged_at = trainer.global_step, "", monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the step before, whose means are known once all callbacks have counted its batch."""
        self._flush(trainer)
        self._pace.start_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the time of a micro-batch, loading it included, and see whether a line is due."""
        self._pace.end_batch(count_batch(batch))
        stepped = trainer.global_step != self._logged_step
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._due = "means"
        elif monotonic() - self._logged_at >= self.every_n_seconds:
            self._due = "time"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last step, unless it has been logged already."""
        self._due = "means" if trainer.global_step != self._logged_step else ""
        self._flush(trainer)

    def _flush(self, trainer: Trainer) -> None:
        if self._active and self._due:
            means = find_means(trainer).items() if self._due == "means" else ()
            parts = [f"{name} {value:.4f}" for name, value in means]
            logger.info(", ".join([describe_step(trainer), *parts, *self._pace.describe(trainer)]))
            self._logged_at, self._logged_step = monotonic(), trainer.global_step
        self._due = ""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the step before and the number of rows; the time until training goes on is not counted as training."""
        self._flush(trainer)
        self._pace.pause()
        self._begin(trainer, "evaluating")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log how many rows are evaluated."""
        self._count(trainer, "evaluating", batch_idx + 1)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many rows will be evaluated."""
        self._begin(trainer, "evaluating")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log how many rows are evaluated."""
        self._count(trainer, "evaluating", batch_idx + 1)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many rows will be predicted."""
        self._begin(trainer, "predicting")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log how many rows are predicted."""
        self._count(trainer, "predicting", batch_idx + 1)

    def _begin(self, trainer: Trainer, what: str) -> None:
        self._evaluating_since = now = monotonic()
        if self._active and not trainer.sanity_checking and now - self._evaluation_logged_at >= SECONDS:
            self._logged_at = self._evaluation_logged_at = now
            found = count_rows(trainer, 0)
            logger.info(f"{what}: {found.total} {found.unit}" if found.total < math.inf else f"{what} batches")

    def _count(self, trainer: Trainer, what: str, batches: int) -> None:
        now = monotonic()
        if not self._active or trainer.sanity_checking or now - self._logged_at < self.every_n_seconds:
            return
        self._logged_at = now
        found = count_rows(trainer, batches)
        if found.done < found.total < math.inf:
            left = format_duration((now - self._evaluating_since) * (1 / found.share - 1))
            logger.info(f"{what}: {found.done} of {found.total} {found.unit}, about {left} left")
        elif found.total == math.inf:
            logger.info(f"{what}: {found.done} {found.unit}")


def describe_step(trainer: Trainer) -> str:
    """The optimizer step, of how many, and the micro-batches of the next one."""
    total, window = trainer.estimated_stepping_batches, trainer.accumulate_grad_batches
    of_total = f" of {total:.0f}" if 0 <= total < math.inf else ""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    micro = 0 if trainer.is_last_batch else batches % window
    return f"training: step {trainer.global_step}{of_total}" + (f", {micro} of {window} micro-batches" if micro else "")


class Evaluated(NamedTuple):
    """How far an evaluation is, on all ranks together."""

    done: int
    total: float
    unit: str
    """`rows`, or `batches` where a loader is not this package's."""

    share: float
    """Part of the tokens that are done: batches of the longest rows come first and take the most time."""


def count_rows(trainer: Trainer, batches: int) -> Evaluated:
    """How far the trainer's evaluation is after `batches` batches of each rank."""
    stage = "val" if trainer.validating or trainer.state.fn == "fit" else "test" if trainer.testing else "predict"
    loaders, limits = getattr(trainer, f"{stage}_dataloaders"), getattr(trainer, f"num_{stage}_batches")
    order = getattr(loaders, "sampler", None)
    if not isinstance(order, BatchOrder):
        return Evaluated(batches, sum(limits), "batches", batches / max(1, sum(limits)))
    groups = [[row for row in group if row >= 0] for group in order.groups()[: int(sum(limits))]]
    tokens = [sum(order.sizes[row] for row in group) for group in groups]
    share = sum(tokens[:batches]) / max(1, sum(tokens))
    return Evaluated(sum(map(len, groups[:batches])), sum(map(len, groups)), "rows", share)
