"""Several losses at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dpo_lightning.losses.base import PairwiseLoss
from dpo_lightning.losses.likelihood import SFTLoss
from dpo_lightning.types import PairLogps, PreferenceOutput, Statistic


@dataclass(frozen=True)
class WeightedSum(PairwiseLoss):
    """A weighted sum of losses, each with its own options; rewards are those of its first part that compares answers.

    Paper: Wang et al. 2024 (MPO), arXiv:2411.10442.
    Loss: `sum_i w_i loss_i`; rewards are not multiplied.
    TRL: several names in `loss_type` with `loss_weights`, which share one beta there.
    Use: MPO is DPO 0.8, BCO 0.2, SFT 1; iterative RPO is DPO 1, SFT 1.
    Typical: betas as in the parts; learning rate that of the most sensitive part.
    """

    losses: list[PairwiseLoss]
    """The parts."""

    weights: list[float]
    """A weight for each; 0 switches a part off."""

    def __post_init__(self) -> None:
        """Check that there is a weight for each part."""
        super().__post_init__()
        self.require("losses", bool(self.losses), "must name at least one")
        self.require("weights", len(self.weights) == len(self.losses), f"must be {len(self.losses)} numbers")
        self.require("weights", all(0 <= weight < float("inf") for weight in self.weights), "must be 0 or more each")
        self.require("weights", sum(self.weights) > 0, "must not all be 0")

    @property
    def parts(self) -> list[tuple[float, PairwiseLoss]]:
        """What is not switched off."""
        return [(weight, loss) for weight, loss in zip(self.weights, self.losses, strict=True) if weight]

    @property
    def statistics(self) -> frozenset[Statistic]:
        """All that a part needs."""
        return frozenset().union(*(loss.statistics for _, loss in self.parts))

    @property
    def reference_free(self) -> bool:
        """Where every part is."""
        return all(loss.reference_free for _, loss in self.parts)

    @property
    def weighted(self) -> bool:
        """Where every part is."""
        return all(loss.weighted for _, loss in self.parts)

    @property
    def margin_above_0(self) -> bool:
        """Where one part wants it."""
        return any(loss.margin_above_0 for _, loss in self.parts)

    @property
    def state(self) -> nn.Module | None:
        """The states of the parts."""
        states = {str(place): loss.state for place, (_, loss) in enumerate(self.parts) if loss.state is not None}
        return nn.ModuleDict(states) if states else None

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Let each part note its own rewards."""
        for _, loss in self.parts:
            if loss.state is not None:
                with torch.no_grad():
                    loss.observe(loss(logps), logps)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair, and rewards; the weighted sum of the parts' where policy and reference agree."""
        outputs = [(weight, loss, loss(logps)) for weight, loss in self.parts]
        total = torch.stack([weight * output.losses for weight, _, output in outputs]).sum(0)
        first = next((output for _, loss, output in outputs if not isinstance(loss, SFTLoss)), outputs[0][2])
        return first._replace(losses=total)
