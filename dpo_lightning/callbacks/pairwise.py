"""`RewardMargins` and `PreferenceAccuracy`: TRL's names, exact over pairs for any batch size and number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from dpo_lightning.callbacks.means import MeansCallback
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.metrics import preference_accuracy, reward_margins
from dpo_lightning.types import PairLogps, PreferenceOutput


class RewardMargins(MeansCallback):
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
        """Values per pair."""
        output, logps = compared(outputs)
        values = {"loss": output.losses, **reward_margins(output, logps)}
        return values, {name: batch.weights if name == "loss" else batch.indices >= 0 for name in self.names}


class PreferenceAccuracy(MeansCallback):
    """How often the chosen answer wins: by implicit reward, and by likelihood under policy and reference."""

    names = ("rewards/accuracies", "rewards/ties", "logps/accuracies", "logps/ref_accuracies")
    shown = ("rewards/accuracies",)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Leave the reference's wins out where there is none."""
        loss = getattr(pl_module, "loss", None)
        if loss is not None and loss.reference_free:
            self._measure(tuple(name for name in self.names if name != "logps/ref_accuracies"))

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Wins per pair."""
        return preference_accuracy(*compared(outputs)), batch.indices >= 0


def compared(outputs: Mapping[str, Any]) -> tuple[PreferenceOutput, PairLogps]:
    """What a step on pairs returns; other steps have none."""
    if "preference" not in outputs:
        raise UserError(
            ExitCode.CONFIG,
            Problem("RewardMargins and PreferenceAccuracy measure pairs, and there are none", "trainer.callbacks"),
            fix="--trainer.callbacks TokenLoss for SFT, UnpairedRewards for KTO, RankedRewards for lists",
        )
    return outputs["preference"], outputs["logps"]
