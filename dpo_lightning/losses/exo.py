"""Efficient exact optimization (EXO): the reverse KL from the policy's preference to a smoothed label."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import MarginLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class EXOLoss(MarginLoss):
    """Efficient exact optimization: the reverse KL from the policy's preference to the smoothed label.

    Paper: Ji et al. 2024, arXiv:2402.00856, eq. 16.
    Loss: with `p = sigmoid(beta h)`: `p log(p / (1-e)) + (1-p) log((1-p) / e)`.
    TRL: `exo_pair`.
    Use: in place of cDPO, where the policy should concentrate on one mode rather than cover all.
    Typical: beta 0.1, e 1e-3; learning rate 5e-7.
    Check: 2.761231, 1.27631, 0.458972
    """

    label_smoothing: float = option(1e-3, within="(0, 0.5)")
    """Assumed share `e` of flipped preferences, in (0, 0.5): at 0 the loss is infinite."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; -ln 2 - (ln e + ln(1-e)) / 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        h = self.beta * (chosen - rejected)
        # Logarithms of the label's probabilities: log1p is exact for a small e.
        kept, flipped = math.log1p(-self.label_smoothing), math.log(self.label_smoothing)
        losses = h.sigmoid() * (logsigmoid(h) - kept) + (-h).sigmoid() * (logsigmoid(-h) - flipped)
        return self.output(losses, logps, (chosen, rejected))
