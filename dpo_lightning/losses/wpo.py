"""Weighted preference optimization (WPO): weights on the pairs of another loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_lightning.losses.base import PairwiseLoss
from dpo_lightning.losses.dpo import DPOLoss
from dpo_lightning.types import PairLogps, PreferenceOutput, Statistic

LARGEST_EXPONENT = 60.0
"""Larger than any exponent of the weights; exp(60) is still finite in float32."""


@dataclass(frozen=True)
class WPOLoss(PairwiseLoss):
    """Weighted preference optimization: pairs are weighted by how likely the policy is to write them itself.

    Paper: Zhou et al. 2024, arXiv:2406.11827, eq. 2 with aligned weights.
    Loss: `w(yw) w(yl)` times the inner loss, `w = exp(mean_t [log pi(y_t) - log sum_v pi(v)^2])`, without gradient.
    TRL: `use_weighting`.
    Use: on pairs that another model wrote.
    Typical: as the inner loss.
    Check: 0.659342, 8.63e-6, 0.000149
    """

    loss: PairwiseLoss = DPOLoss()  # noqa: RUF009 - frozen
    """The inner loss: any that accepts weights and does not weight pairs itself."""

    def __post_init__(self) -> None:
        """Refuse an inner loss that takes no weights, or weights pairs itself."""
        super().__post_init__()
        self.require("loss", self.loss.accepts_weights, "compares pairs with one another and takes no weights")
        once = "collisions" not in self.loss.statistics
        self.require("loss", once, "applies a weight per pair already, so that of WPO would be applied twice")

    @property
    def statistics(self) -> frozenset[Statistic]:
        """Those of the inner loss, and `collisions`."""
        return self.loss.statistics | {"collisions"}

    @property
    def reference_free(self) -> bool:
        """True where the inner loss does not read the reference."""
        return self.loss.reference_free

    @property
    def needs_positive_margin(self) -> bool:
        """True where the inner loss refuses a `margin` of 0."""
        return self.loss.needs_positive_margin

    @property
    def state(self) -> torch.nn.Module | None:
        """The state of the inner loss, if any."""
        return self.loss.state

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Update the state of the inner loss, whose rewards are those of `output`."""
        self.loss.observe(output, logps)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair, times the weights of both answers; the inner loss's, weighted, where both models agree."""
        output = self.loss(logps)
        return output._replace(losses=output.losses * self.compute_pair_weights(logps))

    @staticmethod
    def compute_pair_weights(logps: PairLogps) -> Tensor:
        """`w(yw) w(yl)` `[pair]`; above 1 where the tokens are likelier than those the policy samples on average."""
        assert logps.collisions is not None  # named in `statistics`
        sums = torch.cat([logps.policy_chosen, logps.policy_rejected]).detach() - logps.collisions
        lengths = torch.cat([logps.chosen_lengths, logps.rejected_lengths]).clamp(min=1)
        chosen, rejected = (sums / lengths).chunk(2)
        # The product of both weights as one exponential, which overflows later.
        return (chosen + rejected).clamp(max=LARGEST_EXPONENT).exp()
