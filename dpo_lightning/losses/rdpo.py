"""Length-regularised DPO (R-DPO): the difference in length explains a part of the margin."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class RDPOLoss(PreferenceLoss):
    """Length-regularised DPO: a part of the margin is attributed to the difference in length.

    Paper: Park et al. 2024, arXiv:2403.19159.
    Loss: `-log sigmoid(beta h + alpha (nw - nl))`.
    TRL: none.
    Use: where answers grow longer without getting better.
    Typical: beta 0.1, alpha 0.005 to 0.05; learning rate 5e-7.
    Check: 0.69816, 0.321419, 0.125741
    """

    alpha: float = option(0.01, within="[0, inf)")  # below 0 it would reward length
    """Reward that is attributed to each token by which the chosen answer is longer."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln(1 + exp(alpha (nl - nw))) where policy and reference agree."""
        longer = logps.chosen_lengths - logps.rejected_lengths
        return self.output(-logsigmoid(self.beta * logps.margins + self.alpha * longer), logps)
