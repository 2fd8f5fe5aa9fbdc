"""Binary classifier optimization (BCO), of pairs and of single answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, UnpairedLoss
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.types import PairLogps, PreferenceOutput, UnpairedLogps, UnpairedOutput


@dataclass(frozen=True)
class BCOPairLoss(PreferenceLoss):
    """Binary classifier optimization of pairs: chosen rewards above, rejected ones below the mean of all.

    The mean is updated after each optimizer step, over all pairs of the step on all ranks, so that it does not depend
    on how a batch is cut. The authors' code updates it within the forward pass of each micro-batch.

    Paper: Jung et al. 2024, arXiv:2404.04656.
    Loss: `-log sigmoid(beta a - delta) - log sigmoid(-(beta r - delta))`, delta the running mean of rewards.
    TRL: `bco_pair`, which has had delta 0 since 0.29; that is `shift: false`.
    Use: as one part of a weighted sum (MPO), and where rewards drift as a whole.
    Typical: beta 0.01 to 0.1; learning rate 5e-7.
    Check: 1.386294, 1.004121, 0.855775
    """

    shift: bool = True
    """Subtract the running mean of rewards; without it, rewards are compared with 0."""

    reward_mean: RunningMean = field(default_factory=RunningMean, init=False, repr=False, compare=False)

    @property
    def state(self) -> RunningMean | None:
        """The running mean of rewards; nothing where it is not subtracted."""
        return self.reward_mean if self.shift else None

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Add both rewards of each pair to the running mean."""
        # The mean of all rewards is that of the pairs' means: both answers have the pair's weight.
        self.reward_mean.add((output.chosen_rewards + output.rejected_rewards) / 2, logps.row_weights)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 2 ln 2 where policy and reference agree."""
        delta = self.reward_mean.value if self.shift else 0.0
        chosen, rejected = self.beta * logps.chosen_logratios, self.beta * logps.rejected_logratios
        return self.output(-logsigmoid(chosen - delta) - logsigmoid(delta - rejected), logps)


@dataclass(frozen=True)
class BCOLoss(UnpairedLoss):
    """Binary classifier optimization: the reward as the logit of "this answer is good", shifted by the mean of rewards.

    The mean is that of all rewards. It is updated after each optimizer step, over all rows of the step on all ranks, so
    that it does not depend on how a batch is cut; the authors' code updates it within the forward pass of each
    micro-batch. Their density ratios, for prompts that differ between good and bad answers, are not computed: give them
    as the rows' `weight`.

    Paper: Jung et al. 2024, arXiv:2404.04656.
    Loss: `-log sigmoid(beta a - delta)` if good, `-log sigmoid(delta - beta a)` if bad, delta the mean of rewards.
    TRL: `bco` of its former `BCOTrainer`; 1.16 has none.
    Use: thumbs up and down, where rewards drift as a whole.
    Typical: beta 0.01 to 0.1; learning rate 5e-7.
    Check: 0.693147, 0.68816, 0.739159, 0.693147, 0.315961, 0.116615
    """

    reward_mean: RunningMean = field(default_factory=RunningMean, init=False, repr=False, compare=False)

    @property
    def state(self) -> RunningMean:
        """The running mean of rewards, which is delta."""
        return self.reward_mean

    def observe(self, output: UnpairedOutput, logps: UnpairedLogps) -> None:
        """Add the reward of each answer to the running mean."""
        self.reward_mean.add(output.rewards, logps.row_weights)

    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Losses and rewards per answer; ln 2 where policy and reference agree."""
        scores = self.beta * logps.logratios - self.reward_mean.value
        return self.output(-logsigmoid(torch.where(logps.good, scores, -scores)), logps)
