"""What every preference loss is: a small frozen object that maps log-probabilities to one number per pair or list."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.losses.divergences import Divergence, ReverseKL
from dpo_lightning.types import PairLogps, PreferenceOutput, Statistic


@dataclass(frozen=True)
class PolicyLoss:
    """Root of all families: hyperparameters are fields, checked when they are given."""

    def __post_init__(self) -> None:
        """Refuse values for which the formula has no meaning; a subclass adds its own and calls this."""
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise self.refuse(option.name, value, "must be a finite number")

    def refuse(self, option: str, value: object, reason: str) -> UserError:
        """The error for a hyperparameter that this loss cannot take. It does not know whether another one holds it."""
        name = type(self).__name__
        return UserError(
            ExitCode.CONFIG,
            Problem(f"{name} {option}={value} {reason}", where=f"{name}.{option}"),
            fix=f"give --model.loss.{option} another value; inside another loss, `{option}` of its {name}",
        )

    def require(self, option: str, good: bool, reason: str) -> None:
        """Refuse the value of an option unless it is good."""
        if not good:
            raise self.refuse(option, getattr(self, option), reason)

    @property
    def statistics(self) -> frozenset[Statistic]:
        """What is needed besides sums and lengths."""
        return frozenset()

    @property
    def reference_free(self) -> bool:
        """Whether no reference is asked."""
        return False

    @property
    def state(self) -> nn.Module | None:
        """Buffers that training moves; they are checkpointed and the same on every rank."""
        return None

    def observe(self, output: Any, logps: Any) -> None:
        """Note what a training step showed, for a loss with state. It takes effect after the optimizer's step."""


@dataclass(frozen=True)
class PairwiseLoss(PolicyLoss, ABC):
    """Root of the losses of pairs: `__call__` is the formula."""

    @property
    def weighted(self) -> bool:
        """Whether pairs may count unequally: not where a loss compares pairs with one another."""
        return True

    @property
    def margin_above_0(self) -> bool:
        """Whether a margin of 0 has no meaning, where the column is needed at all."""
        return False

    @abstractmethod
    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Map the log-probabilities of `[pair]` answers to losses and implicit rewards `[pair]`."""


@dataclass(frozen=True)
class PreferenceLoss(PairwiseLoss):
    """Base of the losses with a beta. A subclass holds its hyperparameters as fields and implements `__call__`.

    A loss of your own: subclass this in your package, then `--allow-class-path your_package
    --model.loss your_package.YourLoss`.
    """

    beta: float = 0.1
    """Strength of the pull towards the reference: a larger beta keeps the policy nearer to it."""

    def __post_init__(self) -> None:
        """Check beta."""
        super().__post_init__()
        self.require("beta", self.beta > 0, "must be greater than 0")

    def output(self, losses: Tensor, logps: PairLogps, scores: tuple[Tensor, Tensor] | None = None) -> PreferenceOutput:
        """Losses with implicit rewards, `beta` times what the loss compares of chosen and rejected.

        Args:
            losses: `[pair]`.
            logps: what the loss was given.
            scores: by default the log-ratios (Rafailov et al. 2023, eq. 5).
        """
        chosen, rejected = scores or (logps.chosen_logratios, logps.rejected_logratios)
        return PreferenceOutput(losses, (self.beta * chosen).detach(), (self.beta * rejected).detach())


@dataclass(frozen=True)
class MarginLoss(PreferenceLoss):
    """Base of the losses of the difference of both answers' scores alone: these may take another divergence."""

    divergence: Divergence = field(default=ReverseKL(), kw_only=True)
    """What holds the policy to its reference: `ReverseKL`, `ForwardKL`, `JensenShannon` or `AlphaDivergence`."""

    def scores(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """What stands in for both log-ratios."""
        return self.divergence(logps.chosen_logratios), self.divergence(logps.rejected_logratios)

    def mean_scores(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """The same per scored token. An answer without one has a score of 0: the clamp keeps 0/0 out."""
        chosen, rejected = self.scores(logps)
        return chosen / logps.chosen_lengths.clamp(min=1), rejected / logps.rejected_lengths.clamp(min=1)
