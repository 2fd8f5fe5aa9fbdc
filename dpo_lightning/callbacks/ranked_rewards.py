"""`RankedRewards`: loss, rewards and order within ranked lists, exact over lists for any batch size and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.metrics import ranked_rewards
from dpo_lightning.types import RankedOutput


class RankedRewards(MeasureCallback):
    """Loss, rewards of the first and the last answer, and how many pairs within a list are in their order.

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
        """Values per list."""
        if not isinstance(outputs.get("output"), RankedOutput):
            raise UserError(
                ExitCode.CONFIG,
                Problem("RankedRewards measures ranked lists, and these rows are none", "trainer.callbacks"),
                fix="leave it out: every module brings its own measures",
            )
        output = outputs["output"]
        weights = {name: batch.weights if name == "loss" else batch.indices >= 0 for name in self.names}
        return {"loss": output.losses, **ranked_rewards(output)}, weights
