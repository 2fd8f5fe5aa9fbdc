"""Self-play preference optimization (SPPO): log-ratios are regressed to fixed targets."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class SPPOLoss(PreferenceLoss):
    """Self-play preference optimization with hard labels: log-ratios are regressed to plus and minus 1/(2 beta).

    Paper: Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with P(chosen wins) = 1; the paper's eta is 1/beta.
    Loss: `(a - 1/(2 beta))^2 + (r + 1/(2 beta))^2`.
    TRL: `sppo_hard`.
    Use: on a model's own answers, in rounds.
    Typical: beta 0.001; learning rate 5e-7. Values are in the thousands at small beta.
    Check: 50, 48.02, 287.62
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 1/(2 beta^2) where policy and reference agree."""
        target = 1 / (2 * self.beta)
        losses = (logps.chosen_logratios - target).square() + (logps.rejected_logratios + target).square()
        return self.output(losses, logps)
