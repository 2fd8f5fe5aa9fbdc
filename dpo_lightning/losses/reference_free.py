"""Losses without a reference: half of the forward passes, and nothing that holds a policy to where it began."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.losses.likelihood import NLLNormalization, chosen_nll
from dpo_lightning.types import PairLogps, PreferenceOutput

LARGEST_EXPONENT = 60.0
"""exp of it times a large beta is still a number in float32."""


def mean_logps(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """Log-probability per scored token of both answers."""
    return (
        logps.policy_chosen / logps.chosen_lengths.clamp(min=1),
        logps.policy_rejected / logps.rejected_lengths.clamp(min=1),
    )


@dataclass(frozen=True)
class ReferenceFreeLoss(PreferenceLoss):
    """Base of the losses that ask no reference."""

    @property
    def reference_free(self) -> bool:
        """So it is."""
        return True


@dataclass(frozen=True)
class SimPOLoss(ReferenceFreeLoss):
    """Simple preference optimization: log-probabilities per token are compared, with a margin to reach.

    Paper: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    Loss: `-log sigmoid(beta (mw - ml) - gamma)`, m the mean log-probability of an answer's tokens.
    TRL: `simpo` of its CPOTrainer with `cpo_alpha=0`, whose `simpo_gamma` is gamma; the authors' code asks for
        `gamma / beta`.
    Use: where no reference fits into memory, and length must not pay.
    Typical: beta 2 to 10, gamma 0.3 to 0.5 of beta; learning rate 3e-7 to 1e-6, more breaks the model.
    """

    beta: float = 2.0
    """Scale of the mean log-probabilities."""

    gamma: float = 1.0
    """Margin that the reward of the chosen answer is to have."""

    def __post_init__(self) -> None:
        """Check the margin."""
        super().__post_init__()
        self.require("gamma", self.gamma >= 0, "must be 0 or more")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair."""
        chosen, rejected = mean_logps(logps)
        return self.output(-logsigmoid(self.beta * (chosen - rejected) - self.gamma), logps, (chosen, rejected))


@dataclass(frozen=True)
class AlphaPOLoss(ReferenceFreeLoss):
    """SimPO with another shape of the reward; alpha 0 is SimPO.

    Paper: Gupta et al. 2025, arXiv:2501.03884.
    Loss: `-log sigmoid(rw - rl - gamma)` with `r = beta (1 - exp(-alpha m)) / alpha`.
    TRL: `alphapo` of its CPOTrainer, whose `alpha` is the same.
    Use: in place of SimPO, where likelihoods fall too far.
    Typical: beta 2.5 to 10, alpha -0.25 to 0.25, gamma 0.1 to 1; learning rate 3e-7 to 1e-6.
    """

    beta: float = 2.5
    """Scale of the rewards."""

    gamma: float = 0.25
    """Margin that the reward of the chosen answer is to have."""

    alpha: float = 0.25
    """Shape: above 0 unlikely answers are punished exponentially."""

    def __post_init__(self) -> None:
        """Check the margin."""
        super().__post_init__()
        self.require("gamma", self.gamma >= 0, "must be 0 or more")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair."""
        chosen, rejected = (self.shaped(mean) for mean in mean_logps(logps))
        return self.output(-logsigmoid(self.beta * (chosen - rejected) - self.gamma), logps, (chosen, rejected))

    def shaped(self, mean: Tensor) -> Tensor:
        """The reward without its beta; at alpha 0 its limit."""
        if abs(self.alpha) < 1e-6:
            return mean
        return -(-self.alpha * mean).clamp(max=LARGEST_EXPONENT).expm1() / self.alpha


@dataclass(frozen=True)
class CPOLoss(ReferenceFreeLoss):
    """Contrastive preference optimization: DPO without a reference, held by the likelihood of chosen answers.

    Paper: Xu et al. 2024, arXiv:2401.08417; its preference term is eq. 3.
    Loss: `-log sigmoid(beta (log pi(yw) - log pi(yl))) - w log pi(yw)`.
    TRL: `sigmoid` of its CPOTrainer, whose `cpo_alpha` is `nll_weight` by the `token_mean`.
    Use: translation, and other tasks where chosen answers are to be imitated as well.
    Typical: beta 0.1; learning rate 1e-6 to 1e-4 with an adapter.
    """

    nll_weight: float = 1.0
    """Weight `w` of the likelihood; 0 leaves it out."""

    normalization: NLLNormalization = "token_mean"
    """What the likelihood's sum over tokens is divided by; the paper's is `sequence_sum`."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        known = get_args(NLLNormalization)
        self.require("nll_weight", self.nll_weight >= 0, "must be 0 or more")
        self.require("normalization", self.normalization in known, f"must be one of {', '.join(known)}")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair."""
        scores = logps.policy_chosen, logps.policy_rejected
        losses = -logsigmoid(self.beta * (scores[0] - scores[1]))
        if self.nll_weight:
            losses = losses + self.nll_weight * chosen_nll(logps, self.normalization)
        return self.output(losses, logps, scores)


@dataclass(frozen=True)
class ORPOLoss(ReferenceFreeLoss):
    """Odds ratio preference optimization: supervised fine-tuning and preference in one stage.

    Paper: Hong et al. 2024, arXiv:2403.07691, eq. 4 and 7; the paper's lambda is beta.
    Loss: `-mw - beta log sigmoid(log odds(mw) - log odds(ml))`, m the mean log-probability of an answer's tokens.
    TRL: its ORPOTrainer, which learns the prompt as well; here the likelihood is that of the answer alone.
    Use: from a base model, without a stage of SFT before.
    Typical: beta 0.1 to 0.2; learning rate 5e-6 to 8e-6.
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair."""
        chosen, rejected = mean_logps(logps)
        odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
        return self.output(-chosen - self.beta * logsigmoid(odds), logps, (chosen, rejected))


def log1mexp(x: Tensor) -> Tensor:
    """`log(1 - exp(x))` for x below 0, without cancellation near 0 (Maechler 2012); finite at 0."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    # Each branch is given what it can take: `where` alone would hand on the other one's NaN in the backward pass.
    return torch.where(near, (-torch.where(near, x, -1.0).expm1()).log(), (-torch.where(near, -1.0, x).exp()).log1p())
