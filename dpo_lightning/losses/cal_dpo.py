"""Calibrated DPO (Cal-DPO): DPO plus a regression of both log-ratios to fixed targets."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class CalDPOLoss(PreferenceLoss):
    """Calibrated DPO: DPO without a beta, plus a regression of the log-ratios to the scale of true rewards.

    Paper: Xiao et al. 2024, arXiv:2412.14516, eq. 10.
    Loss: `-log sigmoid(h) + (a - 1/(2 beta))^2 + (r + 1/(2 beta))^2`; the authors' script halves the squares.
    TRL: none.
    Use: where the likelihood of chosen answers falls under DPO.
    Typical: beta 0.001 to 0.1; learning rate 5e-7.
    Check: 50.693147, 48.020045, 287.62
    """

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 + 1/(2 beta^2) where policy and reference agree."""
        target = 1 / (2 * self.beta)
        calibration = (logps.chosen_logratios - target).square() + (logps.rejected_logratios + target).square()
        return self.output(-logsigmoid(logps.margins) + calibration, logps)
