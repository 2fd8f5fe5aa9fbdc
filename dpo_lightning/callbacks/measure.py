"""Exact means of what steps return: over the steps since the last log line, and over a whole evaluation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.metrics import Means


class MeasureCallback(Callback):
    """Base of the measures. A subclass names its values and reads them from a step's `outputs`."""

    names: tuple[str, ...] = ()
    """Names without the stage's prefix (`train/`, `eval/`, `test/`); under the last one every row counts once."""

    shown: tuple[str, ...] = ()
    """Which of them stand beside the progress bar."""

    def __init__(self) -> None:
        """Keep the training steps' window apart from the evaluation's rows."""
        self._measure(self.names)
        self._logged_step = 0
        self.evaluated = 0
        """Rows of the last evaluation, each counted once."""
        self.evaluated_step = -1
        """The optimizer step whose weights the last evaluation measured."""
        self.logged: dict[str, float] = {}
        """The training steps' means of the last log line."""

    def _measure(self, names: tuple[str, ...]) -> None:
        """Begin with nothing measured, under these names."""
        self._window, self._evaluation = Means(names), Means(names)

    @abstractmethod
    def values(
        self, outputs: Mapping[str, Any], batch: Any
    ) -> tuple[Mapping[str, Tensor], Tensor | Mapping[str, Tensor]]:
        """The values under every name and their weights, each `[item]`; a filler has weight 0."""

    def compute_logged(self, means: dict[str, float]) -> dict[str, float]:
        """What is logged of the means: all of them, unless a subclass has others that follow from them."""
        return means

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the step of a resumed run, which was logged before."""
        self._logged_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a micro-batch; log where an optimizer step ends a window."""
        self._window.to(pl_module.device).update(*self.values(outputs, batch))
        stepped = trainer.global_step != self._logged_step
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the steps since the last line, so that none goes unseen and no model is saved that is none."""
        if self._window.update_called:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        self._logged_step = trainer.global_step
        means = {name: float(value) for name, value in self._window.compute().items()}
        self.logged = {f"train/{name}": value for name, value in self.compute_logged(means).items()}
        self._window.reset()
        for logger in trainer.loggers:
            logger.log_metrics(self.logged, trainer.global_step)
        # For the progress bar and `trainer.callback_metrics`. Not for the loggers: Lightning would number the step
        # differently at an epoch's end.
        for name, value in self.logged.items():
            shown = name.removeprefix("train/") in self.shown
            module.log(name, value, prog_bar=shown, logger=False, batch_size=1)
        self._check_finite("train/loss", self.logged, trainer)

    @staticmethod
    def _check_finite(name: str, means: Mapping[str, float], trainer: Trainer) -> None:
        """End a run whose loss is no number any more: every later step would only spoil more."""
        if not math.isfinite(means.get(name, 0.0)):
            raise UserError(
                ExitCode.DIVERGED,
                f"{name} is {means[name]} at step {trainer.global_step}",
                fix="a smaller --model.learning_rate, a larger --model.loss.beta, or --trainer.gradient_clip_val 1",
            )

    def _start(self) -> None:
        self._evaluation.reset()

    def _count(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        self._evaluation.to(pl_module.device).update(*self.values(outputs, batch))

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.sanity_checking:
            return
        means = self._evaluation.compute()  # gathers the ranks' sums
        if self._evaluation.update_called is False:
            return
        logged = self.compute_logged({name: float(value) for name, value in means.items()})
        values = {f"{stage}/{name}": value for name, value in logged.items()}
        fitting = trainer.state.fn == "fit"
        pl_module.log_dict(values, batch_size=1, logger=not fitting)
        if fitting:  # lightning would log them one step before the training steps that they follow
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)
        self._check_finite(f"{stage}/loss", values, trainer)
        self.evaluated, self.evaluated_step = self.rows(trainer), trainer.global_step

    def rows(self, trainer: Trainer) -> int:
        """Weight of the last evaluation over all ranks, under the last name."""
        return round(float(trainer.strategy.reduce(self._evaluation.weights[-1].clone(), reduce_op="sum")))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an evaluation."""
        self._start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch."""
        self._count(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means under `eval/`."""
        self._finish(trainer, pl_module, "eval")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an evaluation."""
        self._start()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch."""
        self._count(pl_module, outputs, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means under `test/`."""
        self._finish(trainer, pl_module, "test")
