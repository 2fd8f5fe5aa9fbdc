"""`TokenLoss`: the cross-entropy of completions per token, the measure of SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpo_lightning.callbacks.means import MeansCallback


class TokenLoss(MeansCallback):
    """Mean negative log-probability in nats per scored token, every token counting the same."""

    names = ("loss",)
    shown = ("loss",)

    def values(self, outputs: Mapping[str, Any], batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Mean per sequence, weighted by its tokens."""
        sums, lengths = outputs["logps"].sums, outputs["logps"].lengths
        return {"loss": -sums / lengths.clamp(min=1)}, lengths * (batch.indices >= 0)
