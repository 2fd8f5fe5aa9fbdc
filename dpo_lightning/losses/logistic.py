"""DPO and its kin that put a logistic loss on the difference of log-ratios."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class DPOLoss(PreferenceLoss):
    """Direct preference optimization; with label smoothing the conservative cDPO.

    Rafailov et al. 2023, arXiv:2305.18290, eq. 7: `-log sigmoid(beta h)`, h the difference of the log-ratios.
    Smoothing: Mitchell 2023 (cDPO), `-(1-e) log sigmoid(beta h) - e log sigmoid(-beta h)`.
    TRL: `sigmoid`; it has accepted and ignored `label_smoothing` there since 0.29, which is honoured here.
    """

    label_smoothing: float = 0.0
    """Assumed share of flipped preferences, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the range of the smoothing."""
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise self.refuse("label_smoothing", self.label_smoothing, "must lie in [0, 0.5)")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        h = self.beta * logps.margins
        losses = -(1 - self.label_smoothing) * logsigmoid(h) - self.label_smoothing * logsigmoid(-h)
        return self.output(losses, logps)


@dataclass(frozen=True)
class RobustLoss(PreferenceLoss):
    """DPO debiased for randomly flipped preferences. A loss may be negative.

    Chowdhury et al. 2024, arXiv:2403.00409, eq. 14:
    `[-(1-e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)`. TRL: `robust`.
    """

    label_smoothing: float = 0.1
    """Rate `e` at which preferences were flipped, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the range: at 0.5 the labels say nothing and the formula divides by 0."""
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise self.refuse("label_smoothing", self.label_smoothing, "must lie in [0, 0.5)")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair."""
        e, h = self.label_smoothing, self.beta * logps.margins
        losses = (-(1 - e) * logsigmoid(h) + e * logsigmoid(-h)) / (1 - 2 * e)
        return self.output(losses, logps)
