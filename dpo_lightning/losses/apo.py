"""Anchored preference optimization (APO), of pairs and of single answers."""

from __future__ import annotations

from dataclasses import dataclass

from dpo_lightning.losses.base import ClassWeightedLoss, PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput, UnpairedLogps, UnpairedOutput


@dataclass(frozen=True)
class APOZeroLoss(PreferenceLoss):
    """Anchored preference optimization: chosen answers become likelier, rejected ones less so.

    Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7.
    Loss: `1 - sigmoid(beta a) + sigmoid(beta r)`.
    TRL: `apo_zero`.
    Use: where chosen answers are better than what the model writes.
    Typical: beta 0.1; learning rate 5e-7 to 2e-6.
    Check: 1, 0.768412, 0.632557
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
    Check: 1, 0.771441, 0.596718
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 1 where policy and reference agree."""
        return self.output(
            (self.beta * logps.chosen_logratios).sigmoid() + (-self.beta * logps.margins).sigmoid(), logps
        )


@dataclass(frozen=True)
class APOZeroUnpairedLoss(ClassWeightedLoss):
    """Anchored preference optimization of single answers: KTO with z = 0, without mismatched answers.

    Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7 with the two answers apart.
    Loss: `w_D (1 - sigmoid(beta a))` if good, `w_U sigmoid(beta a)` if bad, a the log-ratio.
    TRL: `apo_zero_unpaired` of its `KTOTrainer`.
    Use: where good answers are better than what the model writes; cheaper than KTO, which scores mismatched answers.
    Typical: beta 0.1; learning rate 5e-7 to 2e-6.
    Check: 0.5, 0.4975, 0.522485, 0.5, 0.270912, 0.110073
    """

    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Losses and rewards per answer; half its weight where policy and reference agree."""
        return self.apply_class_weights(self.beta * logps.logratios, logps)
