"""Losses and gradients of chosen rows and steps that are NaN or infinite."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback

from support.whole_runs import weights


class Poison(Callback):
    """Multiplies the loss of some rows, or the gradients of some steps, by a number that is not finite."""

    def __init__(self, rows: Any = (), steps: Any = (), value: float = float("nan")) -> None:
        self.rows, self.steps, self.value = list(rows), list(steps), value
        self.before: dict[int, Any] = {}
        """Weights and the optimizer's state before each step, by the number of steps before it."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        real = pl_module.accumulate

        def poisoned(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            chosen = torch.isin(self.indices, torch.tensor(self.rows))
            return real(losses * torch.where(chosen, self.value, 1.0), weights)

        pl_module.accumulate = poisoned

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.indices = batch.indices
        self.before.setdefault(trainer.global_step, self.state(trainer, pl_module))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step + 1 in self.steps:
            next(value.grad for value in pl_module.policy.parameters() if value.grad is not None).mul_(self.value)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.before[trainer.global_step] = self.state(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.after = self.state(trainer, pl_module)

    @staticmethod
    def state(trainer: Any, pl_module: Any) -> str:
        """Weights and the optimizer's state, as text."""
        with torch._tensor_str.printoptions(profile="full", precision=10):
            return f"{weights(pl_module)} {trainer.optimizers[0].state_dict()}"
