"""The hinge loss on the difference of log-ratios."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class HingeLoss(PreferenceLoss):
    """SLiC's hinge, normalised by the reference as in RSO; beta is the reciprocal of the margin.

    Liu et al. 2023 (RSO), arXiv:2309.06657, eq. 12, after Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425:
    `max(0, 1 - beta h)`. TRL: `hinge`.
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 1 where policy and reference agree."""
        return self.output((1 - self.beta * logps.margins).relu(), logps)
