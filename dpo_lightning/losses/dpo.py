"""Direct preference optimization (DPO), and conservative DPO (cDPO)."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import MarginLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class DPOLoss(MarginLoss):
    """Direct preference optimization; with label smoothing the conservative cDPO.

    Paper: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing: Mitchell 2023, ericmitchell.ai/cdpo.pdf, eq. 3.
    Loss: `-(1-e) log sigmoid(beta h) - e log sigmoid(-beta h)`.
    TRL: `sigmoid`. Since 0.29 it accepts `label_smoothing` there and ignores it; here it is used.
    Use: the default choice; with label smoothing where some preferences are flipped.
    Typical: beta 0.01 to 0.5; learning rate 5e-7, an adapter 1e-5 to 1e-4.
    Check: 0.693147, 0.313262, 0.126928
    """

    label_smoothing: float = option(0.0, within="[0, 0.5)")
    """Assumed share of flipped preferences, in [0, 0.5)."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        h = self.beta * (chosen - rejected)
        losses = -(1 - self.label_smoothing) * logsigmoid(h) - self.label_smoothing * logsigmoid(-h)
        return self.output(losses, logps, (chosen, rejected))
