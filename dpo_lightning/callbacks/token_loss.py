"""`TokenLoss`: the cross-entropy of completions per token, the measure of SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpo_lightning.callbacks.measure import MeasureCallback


class TokenLoss(MeasureCallback):
    """Mean negative log-probability in nats per scored token, every token counting by the `weight` of its row."""

    names = ("loss", "tokens")
    shown = ("loss",)

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the mean of each sequence, weighted by its tokens and its row, and the number of its tokens."""
        sums, lengths = outputs["logps"].sums, outputs["logps"].lengths
        values = {"loss": -sums / lengths.clamp(min=1), "tokens": lengths}
        return values, {"loss": lengths * batch.weights, "tokens": lengths * (batch.indices >= 0)}

    def compute_logged(self, means: dict[str, float]) -> dict[str, float]:
        """Return the loss alone; without one where every row has a weight of 0."""
        return {name: value for name, value in means.items() if name == "loss"}
