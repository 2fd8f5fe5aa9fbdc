"""Identity preference optimization (IPO): a squared loss with a finite optimal margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dpo_lightning.losses.base import MarginLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput

Normalization = Literal["mean", "sum"]


@dataclass(frozen=True)
class IPOLoss(MarginLoss):
    """IPO: regress the difference of log-ratios to `1 / (2 beta)`, where DPO drives it to infinity.

    Paper: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    Loss: `(a/nw - r/nl - 1/(2 beta))^2`, or `(h - 1/(2 beta))^2`; the paper's tau is beta.
    TRL: `ipo`, which is `normalization: mean`. The two differ by orders of magnitude.
    Use: where preferences are nearly certain, so that DPO would increase the margin without limit.
    Typical: beta 0.1 to 1 by the mean, 0.01 to 0.1 by the sum; learning rate 5e-7.
    Check: 25, 8.8209, 3.033403
    """

    normalization: Normalization = option("mean", one_of=get_args(Normalization))
    """`mean` divides each log-ratio by its answer's scored tokens (the authors' later advice); `sum` is the paper's."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair, `1/(4 beta^2)` where policy and reference agree; rewards from what the loss compares."""
        scores = self.mean_scores(logps) if self.normalization == "mean" else self.scores(logps)
        losses = (scores[0] - scores[1] - 1 / (2 * self.beta)).square()
        return self.output(losses, logps, scores)
