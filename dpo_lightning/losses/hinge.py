"""The hinge loss of SLiC and RSO on the difference of log-ratios."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_lightning.losses.base import MarginLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class HingeLoss(MarginLoss):
    """SLiC's hinge, normalised by the reference as in RSO; beta is the reciprocal of the margin.

    Paper: Liu et al. 2023 (RSO), arXiv:2309.06657, after Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425.
    Loss: `max(0, 1 - beta h)`.
    TRL: `hinge`.
    Use: where pairs with a sufficient margin should have no gradient.
    Typical: beta 0.05 to 0.5; learning rate 5e-7.
    Check: 1, 0, 0
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 1 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        return self.output((1 - self.beta * (chosen - rejected)).relu(), logps, (chosen, rejected))
