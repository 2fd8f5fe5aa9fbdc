"""`ReferenceFree`: no reference, for losses that ask none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from dpo_lightning.batches import Batch
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.references.base import KEY, ReferencePolicy
from dpo_lightning.types import SequenceLogps, Statistic


class ReferenceFree(ReferencePolicy):
    """No reference, for losses that ask none: its log-probabilities are 0, so that log-ratios are the policy's own."""

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Nothing is needed."""
        self._digest = "none"

    @property
    def starts_equal(self) -> bool:
        """There is nothing to be equal to."""
        return False

    @property
    def live(self) -> bool:
        """There is no model."""
        return False

    def activated(self, policy: nn.Module) -> Any:
        """Refuse: there is no model."""
        raise UserError(
            ExitCode.CONFIG,
            Problem("there is no reference to ask", KEY),
            fix="a loss with a reference, such as DPOLoss",
        )

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Zeros."""
        zeros = torch.zeros(batch.num_sequences, device=batch.targets.device)
        tokens = zeros[:, None].expand(-1, batch.mask.shape[1]) if "tokens" in statistics else None
        return SequenceLogps(zeros, zeros, tokens)
