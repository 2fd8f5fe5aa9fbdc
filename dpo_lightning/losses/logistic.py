"""DPO and its kin that put a logistic loss on the difference of log-ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from dpo_lightning.losses.base import MarginLoss, PreferenceLoss
from dpo_lightning.types import PairLogps, PreferenceOutput, Statistic


@dataclass(frozen=True)
class DPOLoss(MarginLoss):
    """Direct preference optimization; with label smoothing the conservative cDPO.

    Paper: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing: Mitchell 2023, ericmitchell.ai/cdpo.pdf, eq. 3.
    Loss: `-(1-e) log sigmoid(beta h) - e log sigmoid(-beta h)`.
    TRL: `sigmoid`, where `label_smoothing` has been accepted and ignored since 0.29; it is honoured here.
    Use: the first choice; label smoothing where some preferences are the wrong way round.
    Typical: beta 0.01 to 0.5; learning rate 5e-7, an adapter 1e-5 to 1e-4.
    """

    label_smoothing: float = 0.0
    """Assumed share of flipped preferences, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the range of the smoothing."""
        super().__post_init__()
        self.require("label_smoothing", 0 <= self.label_smoothing < 0.5, "must lie in [0, 0.5)")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        h = self.beta * (chosen - rejected)
        losses = -(1 - self.label_smoothing) * logsigmoid(h) - self.label_smoothing * logsigmoid(-h)
        return self.output(losses, logps, (chosen, rejected))


@dataclass(frozen=True)
class RobustLoss(MarginLoss):
    """DPO debiased for randomly flipped preferences. A loss may be negative.

    Paper: Chowdhury et al. 2024, arXiv:2403.00409.
    Loss: `[-(1-e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)`.
    TRL: `robust`.
    Use: where the share of flipped preferences is known.
    Typical: beta 0.1; learning rate 5e-7.
    """

    label_smoothing: float = 0.1
    """Rate `e` at which preferences were flipped, in [0, 0.5)."""

    def __post_init__(self) -> None:
        """Check the range: at 0.5 the labels say nothing and the formula divides by 0."""
        super().__post_init__()
        self.require("label_smoothing", 0 <= self.label_smoothing < 0.5, "must lie in [0, 0.5)")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        e, h = self.label_smoothing, self.beta * (chosen - rejected)
        losses = (-(1 - e) * logsigmoid(h) + e * logsigmoid(-h)) / (1 - 2 * e)
        return self.output(losses, logps, (chosen, rejected))


@dataclass(frozen=True)
class LNDPOLoss(MarginLoss):
    """Length-normalised DPO, that of Tulu 3: log-ratios per token are compared.

    Paper: Lambert et al. 2024, arXiv:2411.15124, eq. 6.
    Loss: `-log sigmoid(beta (a/nw - r/nl))`.
    TRL: `sigmoid_norm`.
    Use: where chosen answers are longer and the policy learns little but that.
    Typical: beta 5 (0.1 hardly moves anything); learning rate 5e-7.
    """

    beta: float = 5.0
    """Strength of the pull towards the reference, per token: some fifty times that of DPO."""

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen, rejected = self.mean_scores(logps)
        return self.output(-logsigmoid(self.beta * (chosen - rejected)), logps, (chosen, rejected))


@dataclass(frozen=True)
class DPOPLoss(PreferenceLoss):
    """DPO-Positive (Smaug): a chosen answer that becomes less likely than it was costs extra.

    Paper: Pal et al. 2024, arXiv:2402.13228.
    Loss: `-log sigmoid(beta (h - lambda max(0, -a)))`.
    TRL: none.
    Use: where both answers are nearly the same text and the likelihood of both falls.
    Typical: beta 0.1 to 0.3, lambda 5 to 50; learning rate 5e-7.
    """

    penalty: float = 5.0
    """The paper's lambda."""

    def __post_init__(self) -> None:
        """Check the penalty."""
        super().__post_init__()
        self.require("penalty", self.penalty >= 0, "must be 0 or more")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        chosen = logps.chosen_logratios - self.penalty * (-logps.chosen_logratios).relu()
        h = self.beta * (chosen - logps.rejected_logratios)
        return self.output(-logsigmoid(h), logps, (chosen, logps.rejected_logratios))


@dataclass(frozen=True)
class RDPOLoss(PreferenceLoss):
    """Length-regularised DPO: a longer chosen answer has to be preferred by less.

    Paper: Park et al. 2024, arXiv:2403.19159.
    Loss: `-log sigmoid(beta h + alpha (nw - nl))`.
    TRL: none.
    Use: where answers grow longer and no better.
    Typical: beta 0.1, alpha 0.005 to 0.05; learning rate 5e-7.
    """

    alpha: float = 0.01
    """Reward that a token more of the chosen answer is held to have earned by its length alone."""

    def __post_init__(self) -> None:
        """Check the sign: the other one would reward length."""
        super().__post_init__()
        self.require("alpha", self.alpha >= 0, "must be 0 or more")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln(1 + exp(alpha (nl - nw))) where policy and reference agree."""
        longer = logps.chosen_lengths - logps.rejected_lengths
        return self.output(-logsigmoid(self.beta * logps.margins + self.alpha * longer), logps)


@dataclass(frozen=True)
class ODPOLoss(PreferenceLoss):
    """DPO with an offset: the better the chosen answer was found, the larger the margin has to be.

    Paper: Amini et al. 2024, arXiv:2402.10571.
    Loss: `-log sigmoid(beta h - alpha f(margin))`, the margin a column of the rows.
    TRL: none.
    Use: where rows tell by how much, and not only which.
    Typical: beta 0.1 to 0.5, alpha 1 on a scale of a few points; learning rate 5e-7.
    """

    alpha: float = 1.0
    """Reward per unit of the offset."""

    scaling: Literal["identity", "log"] = "identity"
    """`f`: the margin itself, or its logarithm, which is the paper's choice and wants margins above 0."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.require("alpha", self.alpha >= 0, "must be 0 or more")
        self.require("scaling", self.scaling in ("identity", "log"), "must be identity or log")

    @property
    def statistics(self) -> frozenset[Statistic]:
        """The column `margin`."""
        return frozenset({"margin"})

    @property
    def margin_above_0(self) -> bool:
        """Of 0 there is no logarithm."""
        return self.scaling == "log"

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln(1 + exp(alpha f(margin))) where policy and reference agree."""
        assert logps.given_margins is not None  # named in `statistics`
        offset = logps.given_margins
        if self.scaling == "log":
            offset = offset.clamp(min=torch.finfo(offset.dtype).tiny).log()
        return self.output(-logsigmoid(self.beta * logps.margins - self.alpha * offset), logps)


@dataclass(frozen=True)
class DiscoPOPLoss(MarginLoss):
    """A loss that a search by language models found: logistic, exponential around 0.

    Paper: Lu et al. 2024, arXiv:2406.08414, eq. 5.
    Loss: with `x = beta h`, `m = sigmoid(x / tau)`: `-(1-m) log sigmoid(x) + m exp(-x)`.
    TRL: `discopop`.
    Use: beside DPO, as the paper found it a little better on chat.
    Typical: beta 0.05 to 0.1; learning rate 5e-7.
    """

    tau: float = 0.05
    """Where the one turns into the other; at most 1, beyond which the loss grows without end."""

    def __post_init__(self) -> None:
        """Check the temperature."""
        super().__post_init__()
        self.require("tau", 0 < self.tau <= 1, "must lie in (0, 1]")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; (1 + ln 2) / 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        x = self.beta * (chosen - rejected)
        # m exp(-x) as one exponential: apart, they are 0 times infinity.
        losses = -logsigmoid(x) * (-x / self.tau).sigmoid() + (logsigmoid(x / self.tau) - x).exp()
        return self.output(losses, logps, (chosen, rejected))


@dataclass(frozen=True)
class EXOLoss(MarginLoss):
    """Efficient exact optimization: the reverse KL from the policy's preference to the smoothed label.

    Paper: Ji et al. 2024, arXiv:2402.00856, eq. 16.
    Loss: with `p = sigmoid(beta h)`: `p log(p / (1-e)) + (1-p) log((1-p) / e)`.
    TRL: `exo_pair`.
    Use: in place of cDPO, where a mode is to be found rather than the mean.
    Typical: beta 0.1, e 1e-3; learning rate 5e-7.
    """

    label_smoothing: float = 1e-3
    """Assumed share `e` of flipped preferences, in (0, 0.5): at 0 the loss is infinite."""

    def __post_init__(self) -> None:
        """Check the range."""
        super().__post_init__()
        self.require("label_smoothing", 0 < self.label_smoothing < 0.5, "must lie in (0, 0.5)")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; -ln 2 - (ln e + ln(1-e)) / 2 where policy and reference agree."""
        chosen, rejected = self.scores(logps)
        h = self.beta * (chosen - rejected)
        kept, flipped = math.log1p(-self.label_smoothing), math.log(self.label_smoothing)
        losses = h.sigmoid() * (logsigmoid(h) - kept) + (-h).sigmoid() * (logsigmoid(-h) - flipped)
        return self.output(losses, logps, (chosen, rejected))


@dataclass(frozen=True)
class ChiPOLoss(PreferenceLoss):
    """Chi-squared preference optimization: a one-line change of DPO with a guarantee against over-optimization.

    Paper: Huang et al. 2024, arXiv:2407.13399, algorithm 1.
    Loss: `-log sigmoid(clip(beta (phi(a) - phi(r)), -2R, 2R))`, `phi(z) = exp(z) + z`.
    TRL: none.
    Use: for long training on few pairs, where DPO drifts away.
    Typical: beta 0.05 to 0.1, R 1; learning rate 5e-7. Beyond 2R a pair has no gradient any more.
    """

    max_reward: float = 1.0
    """The paper's R: the largest reward that is held to be possible."""

    def __post_init__(self) -> None:
        """Check the bound."""
        super().__post_init__()
        self.require("max_reward", self.max_reward > 0, "must be greater than 0")

    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Losses and rewards per pair; ln 2 where policy and reference agree."""
        # The paper's code bounds the exponent at 20 as well. Less 1, so that a reward begins at 0.
        chosen, rejected = (
            logratios.clamp(max=20).expm1() + logratios
            for logratios in (logps.chosen_logratios, logps.rejected_logratios)
        )
        bound = 2 * self.max_reward
        h = (self.beta * (chosen - rejected)).clamp(-bound, bound)
        return self.output(-logsigmoid(h), logps, (chosen, rejected))
