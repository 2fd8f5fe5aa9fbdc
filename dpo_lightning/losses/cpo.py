"""Contrastive preference optimization (CPO): DPO without a reference, plus the likelihood of chosen answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import ReferenceFreeLoss, option
from dpo_lightning.losses.sft import NLLNormalization, chosen_nll
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class CPOLoss(ReferenceFreeLoss):
    """Contrastive preference optimization: DPO without a reference, plus the likelihood of chosen answers.

    Paper: Xu et al. 2024, arXiv:2401.08417; its preference term is eq. 3.
    Loss: `-log sigmoid(beta (log pi(yw) - log pi(yl))) - w log pi(yw)`.
    TRL: `sigmoid` of its CPOTrainer, whose `cpo_alpha` is `nll_weight` by the `token_mean`.
    Use: translation, and other tasks where chosen answers are to be imitated as well.
    Typical: beta 0.1; learning rate 1e-6 to 1e-4 with an adapter.
    Check: 0.927633, 4.412642, 0.555499
    """

    nll_weight: float = option(1.0, within="[0, inf)")
    """Weight `w` of the likelihood; 0 leaves it out."""

    normalization: NLLNormalization = option("token_mean", one_of=get_args(NLLNormalization))
    """What the likelihood's sum over tokens is divided by; the paper's is `sequence_sum`."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards `beta log pi` per pair."""
        scores = logps.policy_chosen, logps.policy_rejected
        losses = -logsigmoid(self.beta * (scores[0] - scores[1]))
        if self.nll_weight:
            losses = losses + self.nll_weight * chosen_nll(logps, self.normalization)
        return self.output(losses, logps, scores)
