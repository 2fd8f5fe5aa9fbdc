"""`OptimizerLog`: the learning rate and the norm of the gradients, logged with the means of training."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from dpo_lightning.callbacks.measure import log_values
from dpo_lightning.callbacks.non_finite import NonFinite

RATE, NORM = "train/learning_rate", "train/grad_norm"
"""TRL's names."""


class OptimizerLog(Callback):
    """Log the learning rate and the gradients' norm of every `log_every_n_steps`-th step and of an epoch's last one.

    `train/learning_rate` is what the step was taken with; groups of parameters with different rates have
    `train/learning_rate/pg1` and so on. `train/grad_norm` is the norm of the gradient of the step's mean loss over all
    trained parameters, before it is clipped; it is left out where it is NaN or infinite.
    """

    def __init__(self) -> None:
        """Begin without values."""
        self.logged: dict[str, float] = {}
        """The values of the last logged step, by full name."""
        self._rates: list[float] = []
        self._last: dict[str, float] = {}
        self._logged_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the last logged values, and those of the last step, which may have to be logged yet."""
        return {"logged": self.logged, "last": self._last, "logged_step": self._logged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.logged, self._last = dict(state_dict["logged"]), dict(state_dict["last"])
        self._logged_step = state_dict["logged_step"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the learning rates before the scheduler changes them."""
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keep the values of the last step, and log a step that `log_every_n_steps` names."""
        one = len(set(self._rates)) == 1
        self._last = {RATE: self._rates[0]} if one else {f"{RATE}/pg{k}": r for k, r in enumerate(self._rates, 1)}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NonFinite) and math.isfinite(callback.gradient_norm):
                self._last[NORM] = callback.gradient_norm
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last step of an epoch."""
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self._logged_step and self._last:
            self._logged_step, self.logged = trainer.global_step, self._last
            log_values(self.logged, trainer, module, ())
