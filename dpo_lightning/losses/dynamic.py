"""DPO whose beta follows the data."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class BetaDPOLoss(PreferenceLoss):
    """DPO with a beta per micro-batch: larger where its pairs are further apart than usual.

    The mean of the micro-batch's kept pairs decides, so that two ranks or accumulation differ from one batch. What is
    usual, `M0`, is the same on all ranks and moves after each optimizer step. Of the paper's random choice of pairs
    near `M0`, the likeliest one is taken: a run can then be repeated and gone on with exactly. The authors' code takes
    margins in nats, so that its `a` of 0.6 is an alpha of 6 at beta 0.1, and moves `M0` before it is used.

    Paper: Wu et al. 2024, arXiv:2407.08639.
    Loss: `-log sigmoid(b h)`, `b = beta (1 + alpha (mean M - M0))`, `M = beta h`; b is at least 1e-3, without gradient.
    TRL: none.
    Use: where pairs differ much in quality.
    Typical: beta 0.1, alpha 0.6, keep 0.8; learning rate 5e-7.
    """

    alpha: float = 0.6
    """How strongly beta follows the batch; 0 is DPO."""

    keep: float = 1.0
    """Share of each micro-batch's pairs that is kept: those nearest to `M0`. Below 1, `eval/loss` is over these too."""

    momentum: float = 0.9
    """Share of `M0` that an optimizer step leaves."""

    usual: RunningMean = field(default_factory=RunningMean, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the ranges, and begin at a margin of 0."""
        super().__post_init__()
        self.require("alpha", self.alpha >= 0, "must be 0 or more")
        self.require("keep", 0 < self.keep <= 1, "must lie in (0, 1]")
        self.require("momentum", 0 <= self.momentum < 1, "must lie in [0, 1)")
        self.usual.momentum = self.momentum

    @property
    def state(self) -> RunningMean:
        """`M0`."""
        return self.usual

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Count the margins."""
        self.usual.add(output.chosen_rewards - output.rejected_rewards, logps.counts)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        distances = self.beta * logps.margins.detach() - self.usual.value
        kept = self.kept(distances, logps.counts)
        counts = torch.where(kept, logps.counts, 0)
        total = torch.where(counts.sum() > 0, counts.sum(), 1)
        beta = (self.beta * (1 + self.alpha * (counts * distances).sum() / total)).clamp(min=1e-3)
        # The mean over a micro-batch is then one over the pairs that are kept.
        scale = torch.where(kept, logps.counts.sum() / total, 0)
        return self.output(-logsigmoid(beta * logps.margins) * scale, logps)

    def kept(self, distances: Float[Tensor, " pair"], counts: Float[Tensor, " pair"]) -> Bool[Tensor, " pair"]:
        """Which pairs are kept: those nearest to what is usual, at least one, never one without weight."""
        far = torch.where(counts > 0, distances.abs(), torch.inf)
        rank = far.argsort(stable=True).argsort(stable=True)
        return (rank < (self.keep * (counts > 0).sum()).ceil()) & (counts > 0)
