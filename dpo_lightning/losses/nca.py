"""Noise contrastive alignment (NCA): both answers are classified, so that chosen ones do not become less likely."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class NCALoss(PreferenceLoss):
    """Noise contrastive alignment: a classifier of chosen answers against the reference's and the rejected ones.

    Paper: Chen et al. 2024, arXiv:2402.05369, for two responses.
    Loss: `-log sigmoid(beta a) - 1/2 log sigmoid(-beta a) - 1/2 log sigmoid(-beta r)`.
    TRL: `nca_pair`.
    Use: where the likelihood of chosen answers must not fall, as in mathematics and code.
    Typical: beta 0.01 to 0.1; learning rate 5e-7.
    Check: 1.386294, 1.19522, 1.122047
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; 2 ln 2 where policy and reference agree."""
        chosen, rejected = self.beta * logps.chosen_logratios, self.beta * logps.rejected_logratios
        losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
        return self.output(losses, logps)
