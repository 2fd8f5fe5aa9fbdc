"""Losses of single answers that were judged good or bad, without another answer to compare them with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PolicyLoss
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.types import UnpairedLogps, UnpairedOutput


@dataclass(frozen=True)
class UnpairedLoss(PolicyLoss, ABC):
    """Base of the losses of judged answers: hyperparameters are fields, `__call__` is the formula."""

    beta: float = 0.1
    """Strength of the pull towards the reference: a larger beta keeps the policy nearer to it."""

    def __post_init__(self) -> None:
        """Check beta."""
        super().__post_init__()
        self.require("beta", self.beta > 0, "must be greater than 0")

    @property
    def asks_kl(self) -> bool:
        """Whether mismatched answers are scored, to know how far the policy is from the reference."""
        return False

    @abstractmethod
    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Map the log-probabilities of `[answer]` answers to losses and implicit rewards `[answer]`."""

    def output(self, losses: Float[Tensor, " answer"], logps: UnpairedLogps) -> UnpairedOutput:
        """Losses with implicit rewards, `beta` times the log-ratio."""
        return UnpairedOutput(losses, (self.beta * logps.logratios).detach())


@dataclass(frozen=True)
class WeighedLoss(UnpairedLoss):
    """Base of the losses in which good and bad answers may weigh differently."""

    desirable_weight: float = 1.0
    """Factor on the losses of good answers; 0 leaves them out."""

    undesirable_weight: float = 1.0
    """Factor on the losses of bad answers; 0 leaves them out."""

    def __post_init__(self) -> None:
        """Check the weights."""
        super().__post_init__()
        self.require("desirable_weight", self.desirable_weight >= 0, "must be 0 or more")
        self.require("undesirable_weight", self.undesirable_weight >= 0, "must be 0 or more")
        self.require("undesirable_weight", self.desirable_weight + self.undesirable_weight > 0, "leaves no answer")

    def weighed(self, scores: Float[Tensor, " answer"], logps: UnpairedLogps) -> UnpairedOutput:
        """`w_D (1 - sigmoid(score))` for a good answer, `w_U (1 - sigmoid(-score))` for a bad one."""
        good = self.desirable_weight * (-scores).sigmoid()
        return self.output(torch.where(logps.good, good, self.undesirable_weight * scores.sigmoid()), logps)


@dataclass(frozen=True)
class KTOLoss(WeighedLoss):
    """Kahneman-Tversky optimization: good answers above, bad ones below the divergence from the reference.

    `z` is the mean log-ratio of mismatched answers, at least 0 and without a gradient: one number for the micro-batch
    of all ranks. A step therefore depends on how its rows are cut into micro-batches, but not on how these are shared
    out to ranks. The mismatched answers come out of the whole data set, so that a micro-batch may be of a single row;
    larger ones make `z` steadier.

    Paper: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7.
    Loss: `w_D (1 - sigmoid(beta (a - z)))` if good, `w_U (1 - sigmoid(beta (z - a)))` if bad, a the log-ratio.
    TRL: `kto` of its `KTOTrainer`, which mismatches answers within a micro-batch of fixed order.
    Use: thumbs up and down, also where one kind is much rarer.
    Typical: beta 0.1; learning rate 5e-7 to 5e-6; weights such that w_D n_D / (w_U n_U) lies in [1, 4/3].
    """

    @property
    def asks_kl(self) -> bool:
        """It does."""
        return True

    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Losses and rewards per answer; half its weight where policy and reference agree."""
        assert logps.kl is not None, "KTO needs the log-ratios of mismatched answers"
        return self.weighed(self.beta * (logps.logratios - logps.kl.clamp(min=0)), logps)


@dataclass(frozen=True)
class APOZeroUnpairedLoss(WeighedLoss):
    """Anchored preference optimization of single answers: KTO measured from 0. No mismatched answer is scored.

    Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7 with the two answers apart.
    Loss: `w_D (1 - sigmoid(beta a))` if good, `w_U sigmoid(beta a)` if bad, a the log-ratio.
    TRL: `apo_zero_unpaired` of its `KTOTrainer`.
    Use: where good answers are better than what the model writes; mismatched answers, which KTO needs, cost nothing.
    Typical: beta 0.1; learning rate 5e-7 to 2e-6.
    """

    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Losses and rewards per answer; half its weight where policy and reference agree."""
        return self.weighed(self.beta * logps.logratios, logps)


@dataclass(frozen=True)
class BCOLoss(UnpairedLoss):
    """Binary classifier optimization: the reward as the logit of "this answer is good", shifted by the mean of rewards.

    The mean is that of all rewards, and moves after each optimizer step by its rows on all ranks, so that it does not
    depend on how a batch is cut; the authors' code moves it within the forward pass of each micro-batch. Their density
    ratios, for prompts of good and bad answers that differ, are left to the rows' `weight`.

    Paper: Jung et al. 2024, arXiv:2404.04656.
    Loss: `-log sigmoid(beta a - delta)` if good, `-log sigmoid(delta - beta a)` if bad, delta the mean of rewards.
    TRL: `bco` of its former `BCOTrainer`; 1.16 has none.
    Use: thumbs up and down, where rewards drift as a whole.
    Typical: beta 0.01 to 0.1; learning rate 5e-7.
    """

    reward_mean: RunningMean = field(default_factory=RunningMean, init=False, repr=False, compare=False)

    @property
    def state(self) -> RunningMean:
        """The mean."""
        return self.reward_mean

    def observe(self, output: UnpairedOutput, logps: UnpairedLogps) -> None:
        """Count each reward."""
        self.reward_mean.add(output.rewards, logps.counts)

    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Losses and rewards per answer; ln 2 where policy and reference agree."""
        scores = self.beta * logps.logratios - self.reward_mean.value
        return self.output(-logsigmoid(torch.where(logps.good, scores, -scores)), logps)
