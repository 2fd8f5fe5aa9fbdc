"""`RankedRewards`: loss, rewards and pairwise accuracy of ranked lists, as exact means over lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.metrics import ranked_rewards
from dpo_lightning.types import RankedOutput


class RankedRewards(MeasureCallback):
    """Loss, rewards of the first and the last answer, and the share of a list's pairs that are in order.

    Every list counts the same, whatever its length; the loss is the mean that is trained, with the rows' weights.
    """

    names = (
        "loss",
        "rewards/best",
        "rewards/worst",
        "rewards/margins",
        "rewards/accuracies",
        "rewards/ties",
    )
    shown = ("loss", "rewards/margins", "rewards/accuracies")

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the values of each list, and the weights of lists in the loss and elsewhere."""
        if not isinstance(outputs.get("output"), RankedOutput):
            raise UserError(
                ExitCode.CONFIG,
                Problem("RankedRewards needs ranked lists; this run has other rows", "trainer.callbacks"),
                fix="leave it out: every module adds its own measures",
            )
        output = outputs["output"]
        weights = {name: batch.weights if name == "loss" else batch.indices >= 0 for name in self.names}
        return {"loss": output.losses, **ranked_rewards(output)}, weights
