"""DPO-Positive (DPOP): DPO with a penalty on chosen answers that become less likely."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class DPOPLoss(PreferenceLoss):
    """DPO-Positive (Smaug): a penalty where the chosen answer becomes less likely than under the reference.

    Paper: Pal et al. 2024, arXiv:2402.13228.
    Loss: `-log sigmoid(beta (h - lambda max(0, -a)))`.
    TRL: none.
    Use: where both answers are nearly the same text, so that DPO lowers the likelihood of both.
    Typical: beta 0.1 to 0.3, lambda 5 to 50; learning rate 5e-7.
    Check: 0.693147, 0.313262, 0.192476
    """

    penalty: float = option(5.0, within="[0, inf)")
    """Weight of the penalty, the paper's lambda."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen = logps.chosen_logratios - self.penalty * (-logps.chosen_logratios).relu()
        h = self.beta * (chosen - logps.rejected_logratios)
        return self.output(-logsigmoid(h), logps, (chosen, logps.rejected_logratios))
