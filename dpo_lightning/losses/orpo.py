"""Odds ratio preference optimization (ORPO): SFT and preference in one stage, without a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import ReferenceFreeLoss, mean_logps
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class ORPOLoss(ReferenceFreeLoss):
    """Odds ratio preference optimization: supervised fine-tuning and preference in one stage.

    Paper: Hong et al. 2024, arXiv:2403.07691, eq. 4 and 7; the paper's lambda is beta.
    Loss: `-mw - beta log sigmoid(log odds(mw) - log odds(ml))`, m the mean log-probability of an answer's tokens.
    TRL: its ORPOTrainer, which trains on the prompt as well; here the likelihood is that of the answer alone.
    Use: from a base model, without a stage of SFT before.
    Typical: beta 0.1 to 0.2; learning rate 5e-6 to 8e-6.
    Check: 0.761394, 5.031211, 0.250026
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards `beta m` per pair."""
        chosen, rejected = mean_logps(logps)
        odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
        return self.output(-chosen - self.beta * logsigmoid(odds), logps, (chosen, rejected))


def log1mexp(x: Tensor) -> Tensor:
    """`log(1 - exp(x))` for x below 0, without cancellation near 0 (Maechler 2012); finite at 0."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    # The inner `where` keeps each branch in its domain: without it, the NaN of the branch that is not taken would
    # reach the gradient.
    return torch.where(near, (-torch.where(near, x, -1.0).expm1()).log(), (-torch.where(near, -1.0, x).exp()).log1p())
