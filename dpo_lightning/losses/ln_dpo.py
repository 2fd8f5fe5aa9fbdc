"""Length-normalised DPO (LN-DPO): DPO of log-ratios per token."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import MarginLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class LNDPOLoss(MarginLoss):
    """Length-normalised DPO, as used for Tulu 3: it compares log-ratios per token.

    Paper: Lambert et al. 2024, arXiv:2411.15124, eq. 6.
    Loss: `-log sigmoid(beta (a/nw - r/nl))`.
    TRL: `sigmoid_norm`.
    Use: where chosen answers are longer and the policy mostly learns to write longer ones.
    Typical: beta 5 (0.1 hardly moves anything); learning rate 5e-7.
    Check: 0.693147, 3.91e-5, 0
    """

    beta: float = 5.0
    """Strength of the pull towards the reference, per token: about fifty times that of DPO."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen, rejected = self.mean_scores(logps)
        return self.output(-logsigmoid(self.beta * (chosen - rejected)), logps, (chosen, rejected))
