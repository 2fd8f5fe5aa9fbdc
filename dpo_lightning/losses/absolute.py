"""Losses that judge each answer's log-ratio by itself, so that the chosen one cannot fall with the rejected one."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class NCALoss(PreferenceLoss):
    """Noise contrastive alignment: chosen answers are told from both the reference's and the rejected ones.

    Paper: Chen et al. 2024, arXiv:2402.05369, for two responses.
    Loss: `-log sigmoid(beta a) - 1/2 log sigmoid(-beta a) - 1/2 log sigmoid(-beta r)`.
    TRL: `nca_pair`.
    Use: where the likelihood of chosen answers must not fall, as in mathematics and code.
    Typical: beta 0.01 to 0.1; learning rate 5e-7.
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 2 ln 2 where policy and reference agree."""
        chosen, rejected = self.beta * logps.chosen_logratios, self.beta * logps.rejected_logratios
        losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
        return self.output(losses, logps)


@dataclass(frozen=True)
class BCOPairLoss(PreferenceLoss):
    """Binary classifier optimization of pairs: chosen rewards above, rejected ones below the mean of all.

    The mean moves after each optimizer step, over all of its pairs on all ranks, so that it does not depend on how a
    batch is cut; the authors' code moves it within the forward pass of each micro-batch.

    Paper: Jung et al. 2024, arXiv:2404.04656.
    Loss: `-log sigmoid(beta a - delta) - log sigmoid(-(beta r - delta))`, delta the running mean of rewards.
    TRL: `bco_pair`, which has had delta 0 since 0.29; that is `shift: false`.
    Use: as one part of a weighted sum (MPO), and where rewards drift as a whole.
    Typical: beta 0.01 to 0.1; learning rate 5e-7.
    """

    shift: bool = True
    """Subtract the running mean of rewards; without it, rewards are compared with 0."""

    reward_mean: RunningMean = field(default_factory=RunningMean, init=False, repr=False, compare=False)

    @property
    def state(self) -> RunningMean | None:
        """The mean."""
        return self.reward_mean if self.shift else None

    def observe(self, output: PreferenceOutput, logps: PairLogps) -> None:
        """Count both rewards of each pair."""
        self.reward_mean.add((output.chosen_rewards + output.rejected_rewards) / 2, logps.counts)

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 2 ln 2 where policy and reference agree."""
        delta = self.reward_mean.value if self.shift else 0.0
        chosen, rejected = self.beta * logps.chosen_logratios, self.beta * logps.rejected_logratios
        return self.output(-logsigmoid(chosen - delta) - logsigmoid(delta - rejected), logps)


@dataclass(frozen=True)
class SPPOLoss(PreferenceLoss):
    """Self-play preference optimization with hard labels: log-ratios are regressed to plus and minus 1/(2 beta).

    Paper: Wu et al. 2024, arXiv:2405.00675, eq. 4.7 with P(chosen wins) = 1; the paper's eta is 1/beta.
    Loss: `(a - 1/(2 beta))^2 + (r + 1/(2 beta))^2`.
    TRL: `sppo_hard`.
    Use: on a model's own answers, in rounds.
    Typical: beta 0.001; learning rate 5e-7. Values are in the thousands at small beta.
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 1/(2 beta^2) where policy and reference agree."""
        target = 1 / (2 * self.beta)
        losses = (logps.chosen_logratios - target).square() + (logps.rejected_logratios + target).square()
        return self.output(losses, logps)


@dataclass(frozen=True)
class APOZeroLoss(PreferenceLoss):
    """Anchored preference optimization: chosen answers become likelier, rejected ones less so.

    Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7.
    Loss: `1 - sigmoid(beta a) + sigmoid(beta r)`.
    TRL: `apo_zero`.
    Use: where chosen answers are better than what the model writes.
    Typical: beta 0.1; learning rate 5e-7 to 2e-6.
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 1 where policy and reference agree."""
        chosen, rejected = self.beta * logps.chosen_logratios, self.beta * logps.rejected_logratios
        return self.output((-chosen).sigmoid() + rejected.sigmoid(), logps)


@dataclass(frozen=True)
class APODownLoss(PreferenceLoss):
    """Anchored preference optimization: both answers become less likely, the rejected one by more.

    Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8.
    Loss: `sigmoid(beta a) + 1 - sigmoid(beta h)`.
    TRL: `apo_down`.
    Use: where the model writes better answers than the chosen ones.
    Typical: beta 0.1; learning rate 5e-7 to 2e-6.
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 1 where policy and reference agree."""
        return self.output(
            (self.beta * logps.chosen_logratios).sigmoid() + (-self.beta * logps.margins).sigmoid(), logps
        )


@dataclass(frozen=True)
class CalDPOLoss(PreferenceLoss):
    """Calibrated DPO: DPO without a beta, and log-ratios that are regressed to the scale of true rewards.

    Paper: Xiao et al. 2024, arXiv:2412.14516, eq. 10.
    Loss: `-log sigmoid(h) + (a - 1/(2 beta))^2 + (r + 1/(2 beta))^2`; the authors' script halves the squares.
    TRL: none.
    Use: where the likelihood of chosen answers falls under DPO.
    Typical: beta 0.001 to 0.1; learning rate 5e-7.
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 + 1/(2 beta^2) where policy and reference agree."""
        target = 1 / (2 * self.beta)
        calibration = (logps.chosen_logratios - target).square() + (logps.rejected_logratios + target).square()
        return self.output(-logsigmoid(logps.margins) + calibration, logps)
