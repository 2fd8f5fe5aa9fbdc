"""`RewardMargins` and `PreferenceAccuracy`: TRL's names, exact over pairs for any batch size and number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpo_lightning.callbacks.means import MeansCallback
from dpo_lightning.metrics import preference_accuracy, reward_margins


class RewardMargins(MeansCallback):
    """Loss, implicit rewards of both answers, their margin, and the answers' log-probabilities."""

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

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Values per pair."""
        output = outputs["preference"]
        values = {"loss": output.losses, **reward_margins(output, outputs["logps"])}
        return values, batch.indices >= 0


class PreferenceAccuracy(MeansCallback):
    """How often the chosen answer wins: by implicit reward, and by likelihood under policy and reference."""

    names = ("rewards/accuracies", "rewards/ties", "logps/accuracies", "logps/ref_accuracies")
    shown = ("rewards/accuracies",)

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Wins per pair."""
        return preference_accuracy(outputs["preference"], outputs["logps"]), batch.indices >= 0
