"""DPO with a dynamic beta (beta-DPO)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class BetaDPOLoss(PreferenceLoss):
    """DPO with a beta per micro-batch: larger where its pairs are further apart than the running mean.

    The mean is taken over the kept pairs of a micro-batch, so that two ranks or accumulation differ from one batch. The
    running mean of margins, `M0`, is the same on all ranks and is updated after each optimizer step. The paper draws
    the pairs to keep at random, near `M0`; here the nearest are taken, so that a run can be repeated and resumed
    exactly. The authors' code takes margins in nats, so that its `a` of 0.6 is an alpha of 6 at beta 0.1, and updates
    `M0` before it is used.

    Paper: Wu et al. 2024, arXiv:2407.08639.
    Loss: `-log sigmoid(b h)`, `b = beta (1 + alpha (mean M - M0))`, `M = beta h`; b is at least 1e-3, without gradient.
    TRL: none.
    Use: where pairs differ much in quality.
    Typical: beta 0.1, alpha 0.6, keep 0.8; learning rate 5e-7.
    Check: 0.693147, 0.183901, 0.039953
    """

    alpha: float = option(0.6, within="[0, inf)")
    """How strongly beta follows the micro-batch; 0 is DPO."""

    keep: float = option(1.0, within="(0, 1]")
    """Share of each micro-batch's pairs that is kept: those nearest to `M0`. Below 1, `eval/loss` is over these too."""

    momentum: float = option(0.9, within="[0, 1)")
    """Share of the old `M0` in the new one, at each optimizer step."""

    margin_mean: RunningMean = field(default_factory=RunningMean, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the options, and set the momentum of `M0`."""
        super().__post_init__()
        self.margin_mean.momentum = self.momentum

    @property
    def state(self) -> RunningMean:
        """The running mean of margins, `M0`."""
        return self.margin_mean

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Add the reward margin of each pair to `M0`."""
        self.margin_mean.add(output.chosen_rewards - output.rejected_rewards, logps.row_weights)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        distances = self.beta * logps.margins.detach() - self.margin_mean.value
        kept = self.select_nearest(distances, logps.row_weights)
        weights = torch.where(kept, logps.row_weights, 0)
        total = torch.where(weights.sum() > 0, weights.sum(), 1)
        beta = (self.beta * (1 + self.alpha * (weights * distances).sum() / total)).clamp(min=1e-3)
        # The mean over a micro-batch is then one over the pairs that are kept.
        scale = torch.where(kept, logps.row_weights.sum() / total, 0)
        return self.output(-logsigmoid(beta * logps.margins) * scale, logps)

    def select_nearest(
        self, distances: Float[Tensor, " pair"], weights: Float[Tensor, " pair"]
    ) -> Bool[Tensor, " pair"]:
        """Mask of the pairs that are kept: those nearest to `M0`, at least one, and none of weight 0."""
        far = torch.where(weights > 0, distances.abs(), torch.inf)
        # Sorting the order once more gives each pair's rank; `stable` makes ties the same on every machine.
        rank = far.argsort(stable=True).argsort(stable=True)
        return (rank < (self.keep * (weights > 0).sum()).ceil()) & (weights > 0)
