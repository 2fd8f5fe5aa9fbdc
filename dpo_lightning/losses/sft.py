"""Cross-entropy of chosen answers (SFT), a term that many recipes add to a preference loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dpo_lightning.losses.base import PairwiseLoss, mean_logps, option
from dpo_lightning.types import PairLogps, PreferenceOutput

NLLNormalization = Literal["token_mean", "sequence_mean", "sequence_sum"]
"""`token_mean`: over all tokens of the micro-batch (TRL, swift). `sequence_mean`: over each answer's tokens, then over
answers (LLaMA-Factory, OpenRLHF). `sequence_sum`: each answer's sum (NeMo's default, the papers of CPO and RPO)."""


def chosen_nll(logps: PairLogps, normalization: NLLNormalization) -> Tensor:
    """Negative log-likelihood of chosen answers `[pair]`, normalised such that its weighted mean is the batch's loss.

    Tokens of the prompt are not scored. An answer without scored tokens has a likelihood of 1.
    """
    nll = -logps.policy_chosen
    if normalization == "sequence_sum":
        return nll
    if normalization == "sequence_mean":
        return nll / logps.chosen_lengths.clamp(min=1)
    tokens = (logps.row_weights * logps.chosen_lengths).sum()  # 0 where all rows are fillers
    return nll * logps.row_weights.sum() / torch.where(tokens > 0, tokens, 1)


@dataclass(frozen=True)
class SFTLoss(PairwiseLoss):
    """Cross-entropy of chosen answers: the supervised part of a weighted sum, over the answer's scored tokens only.

    By `token_mean`, the share of a pair depends on the lengths in its micro-batch: two ranks or accumulation differ a
    little from one batch.

    Paper: Pang et al. 2024 (iterative RPO), arXiv:2404.19733; Liu et al. 2024 (RPO), arXiv:2405.16436.
    Loss: `-log pi(yw)`, divided as `normalization` names it.
    TRL: `sft`, which is `token_mean`.
    Use: with a preference loss in a `WeightedSum`: on DPO, weight 1 is iterative RPO and 0.005 RPO.
    Typical: no beta; learning rate that of the loss beside it.
    Check: 0.214286, 4.285714, 0.428571
    """

    normalization: NLLNormalization = option("token_mean", one_of=get_args(NLLNormalization))
    """What a sum over tokens is divided by: `token_mean`, `sequence_mean` or `sequence_sum`."""

    reference_free = True

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair; as rewards, log-probabilities per token."""
        rewards = (reward.detach() for reward in mean_logps(logps))
        return PreferenceOutput(chosen_nll(logps, self.normalization), *rewards)
