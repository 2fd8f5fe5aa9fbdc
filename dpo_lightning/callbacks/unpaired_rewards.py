"""`UnpairedRewards`: the measures of unpaired rows under TRL's names, exact for any batch size and number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.losses import UnpairedLoss
from dpo_lightning.metrics import unpaired_rewards
from dpo_lightning.types import UnpairedOutput

KINDS = ("chosen", "rejected")
MARGIN = "rewards/margins"


class UnpairedRewards(MeasureCallback):
    """Loss, divergence, and the rewards and log-probabilities of good (`chosen`) and bad (`rejected`) answers.

    The margin is the difference of the two mean rewards. Means over good or bad answers are left out where there are
    none. The loss is the mean that is trained, with the rows' weights; other measures count every answer once.
    """

    names = ("loss", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "desirable")
    shown = ("loss", MARGIN)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Drop the divergence where the loss does not use it."""
        loss = getattr(pl_module, "loss", None)
        if isinstance(loss, UnpairedLoss) and not loss.needs_kl:
            self._measure(tuple(name for name in self.names if name != "kl"))

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the values of each answer; `chosen` counts good answers only, `rejected` bad ones only."""
        if not isinstance(outputs.get("output"), UnpairedOutput) or "good" not in batch.columns:
            raise UserError(
                ExitCode.CONFIG,
                Problem("UnpairedRewards measures unpaired rows, which only KTOModule trains on", "trainer.callbacks"),
                fix="leave it out",
            )
        real, good = batch.indices >= 0, batch.columns["good"]
        of_kind = {"chosen": real & good, "rejected": real & ~good}
        weights = {name: of_kind.get(name.rpartition("/")[2], real) for name in self.names}
        return unpaired_rewards(outputs["output"], outputs["logps"]), weights | {"loss": batch.weights}

    def compute_logged(self, means: dict[str, float]) -> dict[str, float]:
        """Add the margin if there are both good and bad answers."""
        both = [means[f"rewards/{kind}"] for kind in KINDS if f"rewards/{kind}" in means]
        return means | ({MARGIN: both[0] - both[1]} if len(both) == len(KINDS) else {})
