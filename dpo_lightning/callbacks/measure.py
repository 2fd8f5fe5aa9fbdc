"""Base of the measures: exact means over the steps since the last log line, and over a whole evaluation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dpo_lightning.callbacks.non_finite import STEADIER, find_rows, join_rows, name_rows
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.metrics import Means
from dpo_lightning.runs.random_state import gather, own


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
        self._losses: list[tuple[Tensor, Tensor]] = []
        self._logged_step = 0
        self.evaluated = 0
        """Number of rows in the last evaluation, over all ranks."""
        self.evaluated_step = -1
        """Number of optimizer steps before the last evaluation; -1 without one."""
        self.logged: dict[str, float] = {}
        """Means of the last logged training steps, by full name."""
        self.logged_evaluation = -1
        """In a resumed run: number of optimizer steps before the last evaluation that is in its logs."""
        self._restored: list[Any] = []

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

    def list_logged(self) -> list[str]:
        """Return the names of the values that are logged, without the stage's prefix."""
        return list(self.compute_logged(dict.fromkeys(self._window.names, 0.0)))

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the steps that are not logged yet, of every process, and the last logged means."""
        window = [self._window.sums.cpu(), self._window.weights.cpu()]
        return {"window": gather(window), "logged": self.logged, "evaluated_step": self.evaluated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training goes on, when this process's rank is known."""
        self._restored = state_dict["window"]
        self.logged = dict(state_dict["logged"])
        self.logged_evaluation = state_dict["evaluated_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the first window at the current step, which a resumed run has logged already."""
        self._logged_step = trainer.global_step
        if self._restored:
            sums, weights = own(self._restored, trainer.global_rank)
            self._window.restore(sums, weights)
            self._restored = []
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress
            if progress.is_last_batch:
                # Saved in the evaluation before the epoch's end, which Lightning does not repeat.
                self.on_train_epoch_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch; log after every `log_every_n_steps`-th optimizer step."""
        self._window.to(pl_module.device).update(*leave_out_non_finite(*self.values(outputs, batch)))
        stepped = trainer.global_step != self._logged_step
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the remaining steps."""
        if self._window.update_called:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        self._logged_step = trainer.global_step
        means = {name: float(value) for name, value in self._window.compute().items()}
        self.logged = {f"train/{name}": value for name, value in self.compute_logged(means).items()}
        self._window.reset()
        log_values(self.logged, trainer, module, tuple(f"train/{name}" for name in self.shown))

    def _check_finite(self, name: str, means: Mapping[str, float], trainer: Trainer) -> None:
        """Raise an error where the loss of held-out rows is NaN or infinite, with those of this rank."""
        if not math.isfinite(means.get(name, 0.0)):
            bad, every = find_rows(self._losses)
            rows = join_rows(name_rows(trainer, "eval", bad)) if bad != every else ""
            raise UserError(
                ExitCode.DIVERGED,
                Problem(f"{name} is {means[name]} at step {trainer.global_step}", rows),
                fix="look at these rows" if rows else f"{STEADIER}, or --trainer.precision 32-true",
            )

    def _start(self) -> None:
        self._evaluation.reset()
        self._losses = []

    def _count(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        values, weights = self.values(outputs, batch)
        self._evaluation.to(pl_module.device).update(values, weights)
        if "loss" in values:
            self._losses.append((batch.indices, values["loss"]))

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


def log_values(values: Mapping[str, float], trainer: Trainer, module: LightningModule, shown: tuple[str, ...]) -> None:
    """Log values of training steps, beside the progress bar those that are `shown`; callbacks can monitor each."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), trainer.global_step)
    # For the progress bar and `trainer.callback_metrics`. Not for the loggers: Lightning would number the step
    # differently at an epoch's end.
    for name, value in values.items():
        # A tensor on the CPU: of a number, Lightning would make one on the GPU, and wait for it to read it.
        module.log(name, torch.tensor(value), prog_bar=name in shown, logger=False, batch_size=1)


def leave_out_non_finite(
    values: Mapping[str, Tensor], weights: Tensor | Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Give values that are NaN or infinite a weight of 0: `NonFinite` has stopped or dropped their step."""
    each = {name: weights if isinstance(weights, Tensor) else weights[name] for name in values}
    return values, {name: torch.where(value.isfinite(), each[name], 0) for name, value in values.items()}
