"""`StepBar`: the progress of a run on one line of a terminal, in optimizer steps up to the last one."""

from __future__ import annotations

import math
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from dpo_lightning.activity import HEARTBEAT
from dpo_lightning.callbacks.pace import Pace, count_batch, find_means
from dpo_lightning.callbacks.progress_log import count_rows

SHORT = {"accuracy": "acc"}
"""Names that are shortened for the line."""

WIDTH = 56
"""Columns of the text beside the bar at least, so that the bar does not change its length with the text."""


class StepBar(ProgressBar):
    """Show the optimizer step, of how many, the last logged means, the rows per second and the time left, on one line.

    The line is as wide as the terminal at most. During an evaluation or a prediction it shows the rows of that.
    """

    def __init__(self) -> None:
        """Begin without a line."""
        super().__init__()
        self._enabled = True
        self._pace = Pace()
        self._bar: Any = None

    @property
    def is_enabled(self) -> bool:
        """Whether the line is shown."""
        return self._enabled

    @property
    def is_disabled(self) -> bool:
        """Whether the line is not shown."""
        return not self._enabled

    def enable(self) -> None:
        """Show the line from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Show no line, as on other ranks than the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the step of a resumed run."""
        self._pace.begin(trainer.global_step)
        self._open("step", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the step before, with its means."""
        self._pace.start_batch()
        self._show_step(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a micro-batch."""
        self._pace.end_batch(count_batch(batch))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line of the last step on the terminal."""
        self._show_step(trainer)
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the rows of an evaluation; within training, in place of the means."""
        self._pace.pause()
        if trainer.state.fn != "fit":
            self._open("evaluating", count_rows(trainer, 0).total, 0)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show how many rows are evaluated."""
        self._show_rows(trainer, args[2] + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line on the terminal, unless training goes on."""
        if trainer.state.fn != "fit":
            self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to show rows."""
        self._open("evaluating", count_rows(trainer, 0).total, 0)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show how many rows are evaluated."""
        self._show_rows(trainer, args[2] + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line on the terminal."""
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to show rows."""
        self._open("predicting", count_rows(trainer, 0).total, 0)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show how many rows are predicted."""
        self._show_rows(trainer, args[2] + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line on the terminal."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line on the terminal; what is printed next begins below it."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the line of a loop that has not ended."""
        self._close()

    def _open(self, what: str, total: float, done: int) -> None:
        self._close()
        if self._enabled:
            end = int(total) if 0 < total < math.inf else None
            shape = what + " {n_fmt}/{total_fmt} {bar} {desc}" if end else what + " {n_fmt} {desc}"
            options = {"total": end, "initial": done, "bar_format": shape, "dynamic_ncols": True, "file": sys.stdout}
            self._bar = tqdm(**options)
            HEARTBEAT.shown += 1

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
            HEARTBEAT.shown -= 1

    def _show_step(self, trainer: Trainer) -> None:
        if self._bar is not None:
            found = find_means(trainer).items()
            means = " ".join(f"{SHORT.get(name, name)} {value:.{3 if name == 'loss' else 2}g}" for name, value in found)
            self._show(trainer.global_step, ", ".join([*filter(None, [means]), *self._pace.describe(trainer)]))

    def _show_rows(self, trainer: Trainer, batches: int) -> None:
        if self._bar is None or trainer.sanity_checking:
            return
        found = count_rows(trainer, batches)
        if trainer.state.fn == "fit":
            of_total = f" of {found.total}" if found.total < math.inf else ""
            self._show(trainer.global_step, f"evaluating {found.done}{of_total} {found.unit}")
        else:
            self._show(found.done, found.unit)

    def _show(self, done: int, text: str) -> None:
        self._bar.set_description_str(text.ljust(WIDTH), refresh=False)
        self._bar.update(done - self._bar.n)
