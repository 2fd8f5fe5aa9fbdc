"""`RewardMargins`: rewards, margins and log-probabilities of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.metrics import reward_margins
from dpo_lightning.types import PairLogps, PreferenceOutput


class RewardMargins(MeasureCallback):
    """Loss, implicit rewards of both answers, their margin, and the answers' log-probabilities.

    The loss is the mean that is trained, with the rows' weights; everything else counts every pair once.
    """

    names = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "logps/margins",
    )
    shown = ("loss", "rewards/margins")

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the values of each pair, and the weights of pairs in the loss and elsewhere."""
        output, logps = require_pairs(outputs)
        values = {"loss": output.losses, **reward_margins(output, logps)}
        return values, {name: batch.weights if name == "loss" else batch.indices >= 0 for name in self.names}


def require_pairs(outputs: Mapping[str, Any]) -> tuple[PreferenceOutput, PairLogps]:
    """Return the loss's output and the log-probabilities of a step on pairs.

    Raises:
        UserError: the run trains on rows of another kind.
    """
    if not isinstance(outputs.get("output"), PreferenceOutput):
        raise UserError(
            ExitCode.CONFIG,
            Problem("RewardMargins and PreferenceAccuracy need pairs; this run has other rows", "trainer.callbacks"),
            fix="--trainer.callbacks TokenLoss for SFT, UnpairedRewards for KTO, RankedRewards for lists",
        )
    return outputs["output"], outputs["logps"]
