"""The likelihood of chosen answers: a term that many recipes add to a preference loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dpo_lightning.losses.base import PairwiseLoss
from dpo_lightning.types import PairLogps, PreferenceOutput

NLLNormalization = Literal["token_mean", "sequence_mean", "sequence_sum"]
"""`token_mean`: over all tokens of the micro-batch (TRL, swift). `sequence_mean`: over each answer's tokens, then over
answers (LLaMA-Factory, OpenRLHF). `sequence_sum`: each answer's sum (NeMo's default, the papers of CPO and RPO)."""


def chosen_nll(logps: PairLogps, normalization: NLLNormalization) -> Tensor:
    """Negative log-likelihood of chosen answers `[pair]`; its weighted mean is what the normalization says.

    The prompt has no part in it. An answer without a scored token has a likelihood of 1.
    """
    nll = -logps.policy_chosen
    if normalization == "sequence_sum":
        return nll
    if normalization == "sequence_mean":
        return nll / logps.chosen_lengths.clamp(min=1)
    tokens = (logps.counts * logps.chosen_lengths).sum()
    return nll * logps.counts.sum() / torch.where(tokens > 0, tokens, 1)


@dataclass(frozen=True)
class SFTLoss(PairwiseLoss):
    """Cross-entropy of chosen answers: the supervised part of a mixture, scored tokens of the answer only.

    By `token_mean`, a pair's share depends on the lengths in its micro-batch: two ranks or accumulation differ a little
    from one batch.

    Paper: Pang et al. 2024 (iterative RPO), arXiv:2404.19733; Liu et al. 2024 (RPO), arXiv:2405.16436.
    Loss: `-log pi(yw)`, divided by what `normalization` says.
    TRL: `sft`, which is `token_mean`.
    Use: beside a preference loss in a `WeightedSum`: with weight 1 it is iterative RPO, with 0.005 RPO, both on DPO.
    Typical: no beta; learning rate that of the loss beside it.
    """

    normalization: NLLNormalization = "token_mean"
    """What a sum over tokens is divided by: `token_mean`, `sequence_mean` or `sequence_sum`."""

    def __post_init__(self) -> None:
        """Check the name."""
        super().__post_init__()
        known = get_args(NLLNormalization)
        self.require("normalization", self.normalization in known, f"must be one of {', '.join(known)}")

    @property
    def reference_free(self) -> bool:
        """No reference has a part in it."""
        return True

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses per pair; as rewards, log-probabilities per token."""
        rewards = (
            logps.policy_chosen / logps.chosen_lengths.clamp(min=1),
            logps.policy_rejected / logps.rejected_lengths.clamp(min=1),
        )
        return PreferenceOutput(chosen_nll(logps, self.normalization), *(reward.detach() for reward in rewards))
