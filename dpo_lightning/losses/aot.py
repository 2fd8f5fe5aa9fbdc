"""Alignment by optimal transport (AOT): it compares distributions of scores over a micro-batch, not single pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class AOTUnpairedLoss(PreferenceLoss):
    """Alignment by optimal transport: chosen log-ratios should dominate rejected ones, rank by rank.

    It depends on the pairs of a micro-batch: two ranks or accumulation compute another loss than one batch, and with
    one pair a micro-batch it is DPO.

    Paper: Melnyk et al. 2024, arXiv:2406.05882.
    Loss: `-(1-e) log sigmoid(beta d) - e log sigmoid(-beta d)`, `d = sort(a) - sort(r)` over the micro-batch.
    TRL: `aot_unpaired` (called `aot_pair` before 2026).
    Use: where chosen and rejected answers belong to different prompts; with 16 or more pairs a micro-batch.
    Typical: beta 0.1; learning rate 5e-7.
    Check: 0.315961, 0.68816, 0.126928
    """

    label_smoothing: float = option(0.0, within="[0, 0.5)")
    """Assumed share of flipped preferences, in [0, 0.5)."""

    accepts_weights = False

    def select_samples(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """The two samples, the one that should be larger first."""
        return logps.chosen_logratios, logps.rejected_logratios

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; the loss of a rank is that of the pair from which its first sample comes."""
        larger, smaller = self.select_samples(logps)
        filler = logps.row_weights == 0  # behind all others in both samples
        last = torch.finfo(larger.dtype).max
        order = larger.detach().masked_fill(filler, last).argsort(stable=True)
        other = smaller.detach().masked_fill(filler, last).argsort(stable=True)
        h = self.beta * (larger[order] - smaller[other])
        each = -(1 - self.label_smoothing) * logsigmoid(h) - self.label_smoothing * logsigmoid(-h)
        # Each rank's loss goes to the pair of its larger sample, so that the number of losses is that of pairs.
        return self.output(torch.empty_like(each).index_copy(0, order, each), logps)


@dataclass(frozen=True)
class AOTLoss(AOTUnpairedLoss):
    """Alignment by optimal transport, paired: the policy's preferences should dominate the reference's, rank by rank.

    It depends on the pairs of a micro-batch: two ranks or accumulation compute another loss than one batch, and with
    one pair a micro-batch it is DPO.

    Paper: Melnyk et al. 2024, arXiv:2406.05882.
    Loss: as unpaired, `d = sort(log pi(yw) - log pi(yl)) - sort(log ref(yw) - log ref(yl))` over the micro-batch.
    TRL: `aot`.
    Use: in place of DPO with 16 or more pairs a micro-batch.
    Typical: beta 0.1; learning rate 5e-7.
    Check: 0.693147, 0.126928, 0.313262
    """

    def select_samples(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """By how much the policy, and the reference, prefers the chosen answer."""
        return logps.policy_chosen - logps.policy_rejected, logps.reference_chosen - logps.reference_rejected
