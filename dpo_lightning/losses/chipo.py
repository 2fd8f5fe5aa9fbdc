"""Chi-squared preference optimization (chi-PO): DPO with another link function and a bounded margin."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class ChiPOLoss(PreferenceLoss):
    """Chi-squared preference optimization: a one-line change of DPO with a guarantee against over-optimization.

    Paper: Huang et al. 2024, arXiv:2407.13399, algorithm 1.
    Loss: `-log sigmoid(clip(beta (phi(a) - phi(r)), -2R, 2R))`, `phi(z) = exp(z) + z`.
    TRL: none.
    Use: for long training on few pairs, where DPO moves far from the reference.
    Typical: beta 0.05 to 0.1, R 1; learning rate 5e-7. A pair beyond 2R has no gradient.
    Check: 0.693147, 0.28472, 0.126928
    """

    max_reward: float = option(1.0, within="(0, inf)")
    """Upper bound of the true rewards, the paper's R."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        # The paper's code bounds the exponent at 20 as well. Less 1, so that a reward begins at 0.
        chosen, rejected = (
            logratios.clamp(max=20).expm1() + logratios
            for logratios in (logps.chosen_logratios, logps.rejected_logratios)
        )
        bound = 2 * self.max_reward
        h = (self.beta * (chosen - rejected)).clamp(-bound, bound)
        return self.output(-logsigmoid(h), logps, (chosen, rejected))
