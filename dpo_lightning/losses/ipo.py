"""Identity preference optimization: a squared loss with a finite optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput

Normalization = Literal["mean", "sum"]


@dataclass(frozen=True)
class IPOLoss(PreferenceLoss):
    """IPO: regress the difference of log-ratios to `1 / (2 beta)` instead of driving it to infinity.

    Azar et al. 2023, arXiv:2310.12036, eq. 17: `(h - 1/(2 beta))^2`; the paper's tau is beta. TRL: `ipo`, which is
    `normalization: mean`. The two differ in scale by orders of magnitude, so the choice is written out.
    """

    normalization: Normalization = "mean"
    """`mean` divides each log-ratio by its answer's scored tokens (the authors' later advice); `sum` is the paper's."""

    def __post_init__(self) -> None:
        """Refuse an unknown normalization: a misspelt `mean` would be the sum."""
        super().__post_init__()
        if self.normalization not in get_args(Normalization):
            raise self.refuse("normalization", self.normalization, "must be mean or sum")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair, `1/(4 beta^2)` where policy and reference agree; rewards from what the loss compares."""
        chosen, rejected = logps.chosen_logratios, logps.rejected_logratios
        if self.normalization == "mean":
            # An answer without a scored token has a log-ratio of 0: the clamp keeps 0/0 out.
            chosen = chosen / logps.chosen_lengths.clamp(min=1)
            rejected = rejected / logps.rejected_lengths.clamp(min=1)
        losses = (chosen - rejected - 1 / (2 * self.beta)).square()
        return PreferenceOutput(losses, (self.beta * chosen).detach(), (self.beta * rejected).detach())
