"""DPO with an offset (ODPO): the rows' `margin` is the margin to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss, option
from dpo_lightning.types import PairLogps, PreferenceOutput

Scaling = Literal["identity", "log"]


@dataclass(frozen=True)
class ODPOLoss(PreferenceLoss):
    """DPO with an offset: the better the chosen answer was rated, the larger the margin has to be.

    Paper: Amini et al. 2024, arXiv:2402.10571.
    Loss: `-log sigmoid(beta h - alpha f(margin))`, the margin a column of the rows.
    TRL: none.
    Use: where rows have ratings, and not only an order.
    Typical: beta 0.1 to 0.5, alpha 1 on a scale of a few points; learning rate 5e-7.
    Check: 1.313262, 1.313262, 0.201413
    """

    alpha: float = option(1.0, within="[0, inf)")
    """Reward per unit of the offset."""

    scaling: Scaling = option("identity", one_of=get_args(Scaling))
    """`f`: the margin itself, or its logarithm (the paper's choice), for which margins must be above 0."""

    statistics = frozenset({"margin"})

    @property
    def needs_positive_margin(self) -> bool:
        """True for the logarithm, which 0 does not have."""
        return self.scaling == "log"

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln(1 + exp(alpha f(margin))) where policy and reference agree."""
        assert logps.given_margins is not None  # named in `statistics`
        offset = logps.given_margins
        if self.scaling == "log":
            offset = offset.clamp(min=torch.finfo(offset.dtype).tiny).log()
        return self.output(-logsigmoid(self.beta * logps.margins - self.alpha * offset), logps)
