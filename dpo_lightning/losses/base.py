"""Base classes of the losses: a loss is a frozen dataclass whose fields are its options and whose call is its formula.

Which base to subclass:

- `MarginLoss`: pairs, where the formula depends on the difference of both answers' scores alone. It has `beta`, and
  takes any divergence in place of the reverse KL.
- `PreferenceLoss`: pairs and a reference, in any other way. It has `beta`.
- `ReferenceFreeLoss`: pairs without a reference model. It has `beta`.
- `PairwiseLoss`: pairs, without a `beta`.
- `UnpairedLoss`: single answers that are labelled good or bad; `ClassWeightedLoss` weights the two labels.
- `ListwiseLoss`: ranked lists of answers.

`PolicyLoss` is the root of all of them: it holds the hyperparameters and their checks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.losses.divergences import Divergence, ReverseKL
from dpo_lightning.types import (
    PairLogps,
    PreferenceOutput,
    RankedLogps,
    RankedOutput,
    Statistic,
    UnpairedLogps,
    UnpairedOutput,
)


def option(default: Any, *, within: str = "", one_of: tuple[str, ...] = ()) -> Any:
    """A field whose values are limited. A subclass may give it another default; the limits are inherited.

    Args:
        default: value of the field where none is given.
        within: an interval in mathematical notation, such as `[0, 0.5)` or `(0, inf)`.
        one_of: names, for an option that is one of a few.
    """
    return field(default=default, metadata={"within": within, "one_of": one_of})


def contains(interval: str, value: float) -> bool:
    """Whether a number lies in an interval such as `[0, 0.5)`."""
    low, high = map(float, interval[1:-1].split(","))
    return (low <= value if interval[0] == "[" else low < value) and (
        value <= high if interval[-1] == "]" else value < high
    )


@dataclass(frozen=True)
class PolicyLoss(ABC):
    """Root of all losses: its fields are hyperparameters, which are checked when the loss is made."""

    def __post_init__(self) -> None:
        """Refuse values that are not finite, or outside the limits of their `option`.

        A subclass that adds a check of its own calls this first.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            finite = not isinstance(value, float) or math.isfinite(value)
            self.require(each.name, finite, "must be a finite number")
            limits = self.limits(each.name)
            if interval := limits.get("within"):
                at_least_0, above_0 = interval == "[0, inf)", interval == "(0, inf)"
                reason = "be 0 or more" if at_least_0 else "be greater than 0" if above_0 else f"lie in {interval}"
                self.require(each.name, contains(interval, value), f"must {reason}")
            if names := limits.get("one_of"):
                self.require(each.name, value in names, f"must be one of {', '.join(names)}")

    def limits(self, name: str) -> dict[str, Any]:
        """`within` and `one_of` of an option, as its class or a base of it declares them."""
        # A subclass that only changes the default has a field of its own, without limits.
        declared = (getattr(kind, "__dataclass_fields__", {}).get(name) for kind in type(self).__mro__)
        return next((dict(each.metadata) for each in declared if each is not None and each.metadata), {})

    def require(self, name: str, valid: bool, reason: str) -> None:
        """Refuse the value of an option unless it is valid.

        Raises:
            UserError: it is not; `reason` says what it must be.
        """
        if valid:
            return
        kind = type(self).__name__
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"{kind} {name}={getattr(self, name)} {reason}", where=f"{kind}.{name}"),
            # Whether this loss is part of another one is not known here.
            fix=f"set --model.loss.{name} to another value; where {kind} is a part of another loss, set `{name}` there",
        )

    @property
    def statistics(self) -> frozenset[Statistic]:
        """What the formula reads besides summed log-probabilities and lengths; see `dpo_lightning.types.Statistic`.

        A subclass overrides this, as the properties below, by a property or by a plain class attribute.
        """
        return frozenset()

    @property
    def reference_free(self) -> bool:
        """True where the formula does not read the reference, so that no reference model is loaded."""
        return False

    @property
    def state(self) -> nn.Module | None:
        """Buffers that training updates. They are saved in checkpoints and are the same on every rank."""
        return None

    def observe(self, output: Any, logps: Any) -> None:  # noqa: B027 - most losses have no state
        """Update the state from a micro-batch of training. The update takes effect after the optimizer's step."""

    @abstractmethod
    def __call__(self, logps: Any) -> Any:
        """The formula: log-probabilities to one loss for each row, with implicit rewards."""


@dataclass(frozen=True)
class PairwiseLoss(PolicyLoss):
    """Root of the losses of pairs, for formulas without a `beta`."""

    @property
    def accepts_weights(self) -> bool:
        """Whether rows may have a `weight`. False where a formula compares the pairs of a micro-batch."""
        return True

    @property
    def needs_positive_margin(self) -> bool:
        """Whether a `margin` of 0 is refused; read only where `statistics` has `margin`."""
        return False

    @abstractmethod
    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Map the log-probabilities of pairs to losses and implicit rewards, each `[pair]`."""


@dataclass(frozen=True)
class PreferenceLoss(PairwiseLoss):
    """Base of the losses of pairs with a `beta`: fields are its hyperparameters, `__call__` is its formula.

    A loss of your own: subclass this in your package, then `--allow-class-path your_package
    --model.loss your_package.YourLoss`.
    """

    beta: float = option(0.1, within="(0, inf)")
    """Strength of the pull towards the reference: a larger beta keeps the policy nearer to it."""

    def output(self, losses: Tensor, logps: PairLogps, scores: tuple[Tensor, Tensor] | None = None) -> PreferenceOutput:
        """Losses with implicit rewards, which are `beta` times the scores of both answers, without gradient.

        Args:
            losses: `[pair]`.
            logps: the argument of `__call__`.
            scores: what the loss compares of the chosen and the rejected answer. By default the log-ratios
                (Rafailov et al. 2023, eq. 5).
        """
        chosen, rejected = scores or (logps.chosen_logratios, logps.rejected_logratios)
        return PreferenceOutput(losses, (self.beta * chosen).detach(), (self.beta * rejected).detach())


@dataclass(frozen=True)
class MarginLoss(PreferenceLoss):
    """Base of the losses of pairs that depend on the difference of both scores alone.

    A score is the log-ratio, or its counterpart for another divergence. A divergence leaves an unknown constant, which
    cancels in the difference and nowhere else: other losses cannot take one.
    """

    divergence: Divergence = field(default=ReverseKL(), kw_only=True)
    """Divergence from the reference: `ReverseKL`, `ForwardKL`, `JensenShannon` or `AlphaDivergence`."""

    def scores(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and the rejected answer, each `[pair]`."""
        return self.divergence(logps.chosen_logratios), self.divergence(logps.rejected_logratios)

    def mean_scores(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """The scores divided by the number of scored tokens; 0 for an answer that has none."""
        chosen, rejected = self.scores(logps)
        return chosen / logps.chosen_lengths.clamp(min=1), rejected / logps.rejected_lengths.clamp(min=1)


@dataclass(frozen=True)
class ReferenceFreeLoss(PreferenceLoss):
    """Base of the losses of pairs that do not read the reference."""

    reference_free = True


def mean_logps(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """The policy's log-probability per scored token of chosen and rejected answers; 0 for an answer without tokens."""
    return (
        logps.policy_chosen / logps.chosen_lengths.clamp(min=1),
        logps.policy_rejected / logps.rejected_lengths.clamp(min=1),
    )


@dataclass(frozen=True)
class UnpairedLoss(PolicyLoss):
    """Base of the losses of single answers, each labelled good or bad."""

    beta: float = option(0.1, within="(0, inf)")
    """Strength of the pull towards the reference: a larger beta keeps the policy nearer to it."""

    @property
    def needs_kl(self) -> bool:
        """Whether the formula reads `logps.kl`, for which mismatched answers are scored as well."""
        return False

    @abstractmethod
    def __call__(self, logps: UnpairedLogps) -> UnpairedOutput:
        """Map the log-probabilities of answers to losses and implicit rewards, each `[answer]`."""

    def output(self, losses: Float[Tensor, " answer"], logps: UnpairedLogps) -> UnpairedOutput:
        """Losses with implicit rewards, which are `beta` times the log-ratios, without gradient."""
        return UnpairedOutput(losses, (self.beta * logps.logratios).detach())


@dataclass(frozen=True)
class ClassWeightedLoss(UnpairedLoss):
    """Base of the losses of single answers with a weight for each of the two labels."""

    desirable_weight: float = option(1.0, within="[0, inf)")
    """Factor on the losses of good answers; 0 leaves them out."""

    undesirable_weight: float = option(1.0, within="[0, inf)")
    """Factor on the losses of bad answers; 0 leaves them out."""

    def __post_init__(self) -> None:
        """Refuse weights that are both 0."""
        super().__post_init__()
        some = self.desirable_weight + self.undesirable_weight > 0
        self.require("undesirable_weight", some, "and desirable_weight are both 0, so no answer is trained on")

    def apply_class_weights(self, scores: Float[Tensor, " answer"], logps: UnpairedLogps) -> UnpairedOutput:
        """`w_D (1 - sigmoid(score))` for a good answer, `w_U (1 - sigmoid(-score))` for a bad one."""
        good = self.desirable_weight * (-scores).sigmoid()
        return self.output(torch.where(logps.good, good, self.undesirable_weight * scores.sigmoid()), logps)


@dataclass(frozen=True)
class ListwiseLoss(PolicyLoss):
    """Base of the losses of ranked lists."""

    @abstractmethod
    def __call__(self, logps: RankedLogps) -> RankedOutput:
        """Map the log-probabilities of lists, best answer first, to losses `[list]` and rewards `[list, rank]`."""
