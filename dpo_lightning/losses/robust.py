"""Robust DPO: DPO corrected for randomly flipped preferences."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import MarginLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class RobustLoss(MarginLoss):
    """DPO debiased for randomly flipped preferences. A loss may be negative.

    Paper: Chowdhury et al. 2024, arXiv:2403.00409.
    Loss: `[-(1-e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)`.
    TRL: `robust`.
    Use: where the share of flipped preferences is known.
    Typical: beta 0.1; learning rate 5e-7.
    Check: 0.693147, 0.188262, -0.123072
    """

    label_smoothing: float = option(0.1, within="[0, 0.5)")  # at 0.5 the formula divides by 0
    """Rate `e` at which preferences were flipped, in [0, 0.5)."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        e, h = self.label_smoothing, self.beta * (chosen - rejected)
        losses = (-(1 - e) * logsigmoid(h) + e * logsigmoid(-h)) / (1 - 2 * e)
        return self.output(losses, logps, (chosen, rejected))
