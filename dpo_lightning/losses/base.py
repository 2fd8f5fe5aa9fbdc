"""What every preference loss is: a small frozen object that maps log-probabilities to one number per pair."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from torch import Tensor

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.types import PairLogps, PreferenceOutput


@dataclass(frozen=True)
class PreferenceLoss(ABC):
    """Base of the family. A subclass holds its hyperparameters as fields and implements `__call__`.

    A loss of your own: subclass this in your package, then `--allow-class-path your_package
    --model.loss your_package.YourLoss`.
    """

    beta: float = 0.1
    """Strength of the pull towards the reference: a larger beta keeps the policy nearer to it."""

    def __post_init__(self) -> None:
        """Refuse values for which the formula has no meaning; a subclass adds its own and calls this."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise self.refuse(field.name, value, "must be a finite number")
        if self.beta <= 0:
            raise self.refuse("beta", self.beta, "must be greater than 0")

    def refuse(self, option: str, value: object, reason: str) -> UserError:
        """The error for a hyperparameter that this loss cannot take."""
        return UserError(
            ExitCode.CONFIG,
            Problem(f"{type(self).__name__} {option}={value} {reason}", where=f"model.loss.{option}"),
            fix=f"give --model.loss.{option} another value",
        )

    @abstractmethod
    def __call__(self, logps: PairLogps) -> PreferenceOutput:
        """Map the log-probabilities of `[pair]` answers to losses and implicit rewards `[pair]`."""

    def output(self, losses: Tensor, logps: PairLogps) -> PreferenceOutput:
        """Losses with the usual implicit rewards, `beta * log-ratio` (Rafailov et al. 2023, eq. 5)."""
        return PreferenceOutput(
            losses,
            (self.beta * logps.chosen_logratios).detach(),
            (self.beta * logps.rejected_logratios).detach(),
        )
