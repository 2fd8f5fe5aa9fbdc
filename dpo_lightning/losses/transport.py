"""Losses of optimal transport: the distributions of two scores over a micro-batch are compared, not its pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class AOTUnpairedLoss(PreferenceLoss):
    """Alignment by optimal transport: chosen log-ratios are to dominate rejected ones, rank by rank.

    It depends on what a micro-batch holds: it is another loss on two ranks, with accumulation, and DPO at one pair.

    Paper: Melnyk et al. 2024, arXiv:2406.05882.
    Loss: `-(1-e) log sigmoid(beta d) - e log sigmoid(-beta d)`, `d = sort(a) - sort(r)` over the micro-batch.
    TRL: `aot_unpaired` (called `aot_pair` before 2026).
    Use: where chosen and rejected answers belong to different prompts; with 16 or more pairs a micro-batch.
    Typical: beta 0.1; learning rate 5e-7.
    """

    label_smoothing: float = 0.0
    """Assumed share of flipped preferences, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the range of the smoothing."""
        super().__post_init__()
        self.require("label_smoothing", 0 <= self.label_smoothing < 0.5, "must lie in [0, 0.5)")

    @property
    def weighted(self) -> bool:
        """Ranks have no weights."""
        return False

    def compared(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """The two samples: what is to be larger, and than what."""
        return logps.chosen_logratios, logps.rejected_logratios

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair, that of each rank of the first sample at the pair that it comes from."""
        larger, smaller = self.compared(logps)
        filler = logps.counts == 0  # behind all others in both samples
        last = torch.finfo(larger.dtype).max
        order = larger.detach().masked_fill(filler, last).argsort(stable=True)
        other = smaller.detach().masked_fill(filler, last).argsort(stable=True)
        h = self.beta * (larger[order] - smaller[other])
        each = -(1 - self.label_smoothing) * logsigmoid(h) - self.label_smoothing * logsigmoid(-h)
        return self.output(torch.empty_like(each).index_copy(0, order, each), logps)


@dataclass(frozen=True)
class AOTLoss(AOTUnpairedLoss):
    """Alignment by optimal transport, paired: the policy's preferences are to dominate the reference's, rank by rank.

    It depends on what a micro-batch holds: it is another loss on two ranks, with accumulation, and DPO at one pair.

    Paper: Melnyk et al. 2024, arXiv:2406.05882.
    Loss: as unpaired, `d = sort(log pi(yw) - log pi(yl)) - sort(log ref(yw) - log ref(yl))` over the micro-batch.
    TRL: `aot`.
    Use: in place of DPO with 16 or more pairs a micro-batch.
    Typical: beta 0.1; learning rate 5e-7.
    """

    def compared(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """How much either model prefers the chosen answer."""
        return logps.policy_chosen - logps.policy_rejected, logps.reference_chosen - logps.reference_rejected
