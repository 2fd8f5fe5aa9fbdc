"""A weighted sum of several losses, such as MPO and RPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dpo_lightning.losses.base import PairwiseLoss
from dpo_lightning.losses.sft import SFTLoss
from dpo_lightning.types import PairLogps, PreferenceOutput, Statistic


@dataclass(frozen=True)
class WeightedSum(PairwiseLoss):
    """A weighted sum of losses, each with its own options; rewards are those of its first part other than SFT.

    Paper: Wang et al. 2024 (MPO), arXiv:2411.10442.
    Loss: `sum_i w_i loss_i`; rewards are not multiplied.
    TRL: several names in `loss_type` with `loss_weights`, which share one beta there.
    Use: MPO is DPO 0.8, BCO 0.2, SFT 1; iterative RPO is DPO 1, SFT 1.
    Typical: betas as in the parts; learning rate that of the most sensitive part.
    Check: 1.046062, 4.737148, 0.701269
    """

    losses: list[PairwiseLoss]
    """The parts."""

    weights: list[float]
    """A weight for each part; 0 switches it off."""

    def __post_init__(self) -> None:
        """Check that each part has a weight, and that one of them is above 0."""
        super().__post_init__()
        self.require("losses", bool(self.losses), "must name at least one")
        self.require("weights", len(self.weights) == len(self.losses), f"must be {len(self.losses)} numbers")
        self.require("weights", all(0 <= weight < float("inf") for weight in self.weights), "must be 0 or more each")
        self.require("weights", sum(self.weights) > 0, "must not all be 0")

    @property
    def parts(self) -> list[tuple[float, PairwiseLoss]]:
        """Weight and loss of each part whose weight is above 0."""
        return [(weight, loss) for weight, loss in zip(self.weights, self.losses, strict=True) if weight]

    @property
    def statistics(self) -> frozenset[Statistic]:
        """Union of the statistics of the parts."""
        return frozenset().union(*(loss.statistics for _, loss in self.parts))

    @property
    def reference_free(self) -> bool:
        """True where no part reads the reference."""
        return all(loss.reference_free for _, loss in self.parts)

    @property
    def accepts_weights(self) -> bool:
        """True where every part accepts weights of rows."""
        return all(loss.accepts_weights for _, loss in self.parts)

    @property
    def needs_positive_margin(self) -> bool:
        """True where a part refuses a `margin` of 0."""
        return any(loss.needs_positive_margin for _, loss in self.parts)

    @property
    def state(self) -> nn.Module | None:
        """The states of the parts, by their place among them."""
        states = {str(place): loss.state for place, (_, loss) in enumerate(self.parts) if loss.state is not None}
        return nn.ModuleDict(states) if states else None

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Update the state of each part from its own rewards."""
        for _, loss in self.parts:
            if loss.state is not None:
                # `output` has the rewards of one part only, so the part is computed again.
                with torch.no_grad():
                    loss.observe(loss(logps), logps)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair, and rewards; the weighted sum of the parts' where policy and reference agree."""
        outputs = [(weight, loss, loss(logps)) for weight, loss in self.parts]
        total = torch.stack([weight * output.losses for weight, _, output in outputs]).sum(0)
        first = next((output for _, loss, output in outputs if not isinstance(loss, SFTLoss)), outputs[0][2])
        return first._replace(losses=total)
