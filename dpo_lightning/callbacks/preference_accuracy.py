"""`PreferenceAccuracy`: how often the chosen answer has the higher reward, or the higher likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback
from dpo_lightning.callbacks.reward_margins import require_pairs
from dpo_lightning.metrics import preference_accuracy


class PreferenceAccuracy(MeasureCallback):
    """How often the chosen answer wins: by implicit reward, and by likelihood under policy and reference."""

    names = ("rewards/accuracies", "rewards/ties", "logps/accuracies", "logps/ref_accuracies")
    shown = ("rewards/accuracies",)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Drop the reference's accuracy where the loss has no reference."""
        loss = getattr(pl_module, "loss", None)
        if loss is not None and loss.reference_free:
            self._measure(tuple(name for name in self.names if name != "logps/ref_accuracies"))

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Return 1 for a win and 0 otherwise, for each pair."""
        return preference_accuracy(*require_pairs(outputs)), batch.indices >= 0
