"""`RouterBalance`: the load-balancing loss of a mixture of experts, where it is trained."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback


class RouterBalance(MeasureCallback):
    """The loss before its coefficient, averaged as the steps do; of training alone, and of models with experts alone.

    Even routing gives the number of experts per token. `train/loss` does not hold it.
    """

    names = ("aux_loss",)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a micro-batch."""
        if pl_module.routers is not None:
            super().on_train_batch_end(trainer, pl_module, pl_module.routers.last, batch, batch_idx)

    def values(self, outputs: Any, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The loss of a micro-batch, and its weight."""
        balance, weight = outputs
        return {"aux_loss": balance[None]}, weight[None]

    def _start(self) -> None:
        """Evaluations have none."""

    def _count(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        """Evaluations have none."""

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Evaluations have none."""
