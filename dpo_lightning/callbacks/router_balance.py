"""`RouterBalance`: the load-balancing loss of a mixture of experts, in runs that train with it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback


class RouterBalance(MeasureCallback):
    """The load-balancing loss without its coefficient, of training steps only; `train/loss` does not include it.

    With even routing it equals the number of experts per token. A model without routers logs nothing.
    """

    names = ("aux_loss",)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a micro-batch if the model's routers are trained with this loss."""
        if pl_module.routers is not None:
            super().on_train_batch_end(trainer, pl_module, pl_module.routers.last, batch, batch_idx)

    def values(self, outputs: Any, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Return the loss of a micro-batch and its weight in the optimizer step."""
        balance, weight = outputs
        return {"aux_loss": balance[None]}, weight[None]

    def _count(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        """Ignore the batches of an evaluation, whose loss leaves the routers out."""

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log nothing for an evaluation, as its batches were ignored."""
