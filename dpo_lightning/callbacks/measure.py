"""Base of the measures: exact means over the steps since the last log line, and over a whole evaluation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.metrics import Means


class MeasureCallback(Callback):
    """Base of the measures. A subclass names its values and computes them from a step's `outputs`.

    Means of training steps are logged every `log_every_n_steps` and at an epoch's end, those of an evaluation at its
    end. Each is in `trainer.callback_metrics` under the same name, so that callbacks can monitor it.
    """

    names: tuple[str, ...] = ()
    """Names without the stage's prefix (`train/`, `eval/`, `test/`); under the last one every row counts once."""

    shown: tuple[str, ...] = ()
    """The names whose training means the progress bar shows."""

    def __init__(self) -> None:
        """Create empty means, one set for training steps and one for evaluations."""
        self._measure(self.names)
        self._logged_step = 0
        self.evaluated = 0
        """Number of rows in the last evaluation, over all ranks."""
        self.evaluated_step = -1
        """Number of optimizer steps before the last evaluation; -1 without one."""
        self.logged: dict[str, float] = {}
        """Means of the last logged training steps, by full name."""

    def _measure(self, names: tuple[str, ...]) -> None:
        """Reset both sets of means to the given names."""
        self._window, self._evaluation = Means(names), Means(names)

    @abstractmethod
    def values(
        self, outputs: Mapping[str, Any], batch: Any
    ) -> tuple[Mapping[str, Tensor], Tensor | Mapping[str, Tensor]]:
        """Return the values under every name and their weights, each `[item]`.

        Rows that pad a batch for the sake of other ranks have weight 0.
        """

    def compute_logged(self, means: dict[str, float]) -> dict[str, float]:
        """Return the values to log; a subclass drops some of the means or derives others from them."""
        return means

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the first window at the current step, which a resumed run has logged already."""
        self._logged_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch; log after every `log_every_n_steps`-th optimizer step."""
        self._window.to(pl_module.device).update(*self.values(outputs, batch))
        stepped = trainer.global_step != self._logged_step
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the remaining steps, so that a diverged loss stops the run before the final model is saved."""
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
            # A tensor on the CPU: of a number, Lightning would make one on the GPU, and wait for it to read it.
            module.log(name, torch.tensor(value), prog_bar=shown, logger=False, batch_size=1)
        self._check_finite("train/loss", self.logged, trainer)

    @staticmethod
    def _check_finite(name: str, means: Mapping[str, float], trainer: Trainer) -> None:
        """Raise an error where the loss is NaN or infinite, since the weights are then lost as well."""
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
        means = self._evaluation.compute()  # summed over the ranks
        if self._evaluation.update_called is False:
            return
        logged = self.compute_logged({name: float(value) for name, value in means.items()})
        values = {f"{stage}/{name}": value for name, value in logged.items()}
        fitting = trainer.state.fn == "fit"
        pl_module.log_dict(values, batch_size=1, logger=not fitting)
        if fitting:  # Lightning would log them one step earlier than the training steps before them
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)
        self._check_finite(f"{stage}/loss", values, trainer)
        self.evaluated, self.evaluated_step = self.rows(trainer), trainer.global_step

    def rows(self, trainer: Trainer) -> int:
        """Return the number of rows in the last evaluation: the weight under the last name, over all ranks."""
        return round(float(trainer.strategy.reduce(self._evaluation.weights[-1].clone(), reduce_op="sum")))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the means of the previous evaluation."""
        self._start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add a batch to the evaluation's means."""
        self._count(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the evaluation's means with the prefix `eval/`."""
        self._finish(trainer, pl_module, "eval")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the means of the previous evaluation."""
        self._start()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add a batch to the evaluation's means."""
        self._count(pl_module, outputs, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the evaluation's means with the prefix `test/`."""
        self._finish(trainer, pl_module, "test")
