"""`ReferenceFree`: no reference, for losses that use none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from dpo_lightning.batches import Batch
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.references.base import REFERENCE_KEY, ReferencePolicy
from dpo_lightning.types import SequenceLogps, Statistic


class ReferenceFree(ReferencePolicy):
    """No reference: its log-probabilities are 0, so that log-ratios equal the policy's log-probabilities."""

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Set a constant digest; nothing is taken from the policy."""
        self._digest = "none"

    @property
    def equals_start(self) -> bool:
        """False: log-ratios are not 0 before the first step."""
        return False

    @property
    def has_model(self) -> bool:
        """False: there is no model that could generate or give distributions."""
        return False

    def as_model(self, policy: nn.Module) -> Any:
        """Raise an error, as there is no model.

        Raises:
            UserError: always.
        """
        raise UserError(
            ExitCode.CONFIG,
            Problem("ReferenceFree has no model", REFERENCE_KEY),
            fix="use a loss with a reference, such as DPOLoss",
        )

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Return log-probabilities and lengths of 0 for every sequence of the batch."""
        zeros = torch.zeros(batch.num_sequences, device=batch.targets.device)
        tokens = zeros[:, None].expand(-1, batch.mask.shape[1]) if "tokens" in statistics else None
        return SequenceLogps(zeros, zeros, tokens)
