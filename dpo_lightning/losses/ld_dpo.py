"""Length-desensitised DPO (LD-DPO): less weight on tokens beyond the shorter answer's length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class LDDPOLoss(PreferenceLoss):
    """Length-desensitised DPO: tokens beyond the shorter answer's length are multiplied by alpha.

    Positions are counted in scored tokens. Policy and reference are treated alike, so that the loss begins at ln 2.

    Paper: Liu et al. 2024, arXiv:2409.06411.
    Loss: `-log sigmoid(beta h)` of log-probabilities `sum of the first min(nw, nl) tokens + alpha * sum of the rest`.
    TRL: `ld_alpha` with `sigmoid`, the same since 0.29; before, it changed the policy's side alone.
    Use: where answers grow longer without getting better.
    Typical: beta 0.1, alpha 0.3 to 0.6; learning rate 5e-7.
    Check: 0.693147, 0.402192, 0.125594
    """

    alpha: float = option(0.5, within="[0, 1]")
    """Weight of the tokens beyond; 1 is DPO, 0 leaves them out."""

    statistics = frozenset({"tokens"})

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        assert logps.policy_tokens is not None  # named in `statistics`
        assert logps.reference_tokens is not None
        shorter = torch.minimum(logps.chosen_lengths, logps.rejected_lengths).repeat(2)  # chosen, then rejected
        logratios = logps.policy_tokens - logps.reference_tokens
        within = torch.arange(logratios.shape[1], device=shorter.device) < shorter[:, None]
        chosen, rejected = torch.where(within, logratios, self.alpha * logratios).sum(1).chunk(2)
        return self.output(-logsigmoid(self.beta * (chosen - rejected)), logps, (chosen, rejected))
