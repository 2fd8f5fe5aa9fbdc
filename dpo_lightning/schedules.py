"""Learning rates with a warm-up, over the steps of a run: constant, linear or cosine, as in `transformers`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dpo_lightning.errors import ExitCode, Problem, UserError

KEY = "model.lr_scheduler"


class WarmupSchedule(LRScheduler):
    """Base of the schedules: the rate grows evenly to `learning_rate` in the first steps, and then follows `decay`.

    Step k of a warm-up of w steps, from 1 on, has k/w of the rate, so that no step has a rate of 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_ratio: float = 0.1,
        warmup_steps: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        """Set how long the warm-up and the whole schedule are.

        Args:
            optimizer: the optimizer; a config does not name it.
            warmup_ratio: part of all steps in which the rate grows, rounded up to whole steps.
            warmup_steps: number of these steps, in place of `warmup_ratio`.
            total_steps: optimizer steps until the end of the schedule; left out, those of the run.
        """
        wrong = {
            "warmup_ratio": not 0 <= warmup_ratio < 1,
            "warmup_steps": warmup_steps is not None and warmup_steps < 0,
            "total_steps": total_steps is not None and total_steps <= (warmup_steps or 0),
        }
        if any(wrong.values()):
            name = next(name for name, bad in wrong.items() if bad)
            what = "is less than one step after warmup_steps" if name == "total_steps" else "is out of range"
            fix = f"--{KEY}.{name} " + {"warmup_ratio": "0.1", "warmup_steps": "10"}.get(name, "with more steps")
            raise UserError(ExitCode.CONFIG, Problem(f"{name} {what}", KEY), fix=fix)
        self.warmup_ratio, self.warmup_steps, self.total_steps = warmup_ratio, warmup_steps, total_steps
        self.steps = total_steps
        """Steps until the end of the schedule; None until `plan`."""
        super().__init__(optimizer)

    @abstractmethod
    def decay(self, share: float) -> float:
        """Return the factor of the rate after a share of the steps that follow the warm-up, from 0 to 1."""

    def plan(self, steps: float) -> None:
        """Set the number of steps of the run, which ends the schedule unless `total_steps` is given.

        Raises:
            UserError: 64, the run has no end by which the schedule could be made.
        """
        if self.total_steps is None and math.isinf(steps):
            what = Problem("the schedule needs the number of the run's steps, and the run has no end", KEY)
            raise UserError(ExitCode.CONFIG, what, fix=f"--trainer.max_steps, or --{KEY}.total_steps")
        self.steps = self.total_steps or int(steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def factor(self, step: int) -> float:
        """Return the factor of the rate of a step, from 0 on."""
        steps, warmup = self.steps or 1, self.warmup
        if step < warmup:
            return (step + 1) / warmup
        return self.decay(min((step - warmup) / max(steps - warmup, 1), 1.0))

    @property
    def warmup(self) -> int:
        """The number of steps in which the rate grows."""
        return math.ceil(self.warmup_ratio * (self.steps or 1)) if self.warmup_steps is None else self.warmup_steps

    def find_misfits(self, steps: float) -> Iterator[str]:
        """Iterate over what is wrong with this schedule in a run of so many steps, each in a sentence."""
        if self.warmup > steps:
            part = f"{steps / self.warmup:.2g} of learning_rate"
            yield f"the warm-up takes {self.warmup} steps and the run ends after {steps}: the rate reaches {part}"
        if self.total_steps is not None and self.total_steps < steps and not self.decay(1.0):
            yield f"total_steps={self.total_steps}: {describe_idle_steps(self.total_steps, steps)}"

    def get_lr(self) -> list[float | Any]:
        """Return the rates of the next step."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the schedule; how long it is follows from the config, which may have more steps."""
        return {name: value for name, value in super().state_dict().items() if name not in CONFIGURED}


def describe_idle_steps(last: int, steps: float) -> str:
    """Return the sentence for a schedule that reaches 0 after the step `last` of a run of more steps."""
    return f"the learning rate is 0 after step {last}, and the run has {describe_length(steps)}"


def describe_length(steps: float) -> str:
    """Return the number of a run's steps in words."""
    return f"{steps} steps" if math.isfinite(steps) else "no end"


CONFIGURED = ("warmup_ratio", "warmup_steps", "total_steps", "steps")
"""Attributes that a checkpoint does not hold."""


class ConstantWithWarmup(WarmupSchedule):
    """A warm-up, then the full rate."""

    def decay(self, share: float) -> float:
        """Return 1."""
        return 1.0


class LinearWithWarmup(WarmupSchedule):
    """A warm-up, then a straight line that reaches 0 after the last step."""

    def decay(self, share: float) -> float:
        """Return what is left of the line."""
        return 1.0 - share


class CosineWithWarmup(WarmupSchedule):
    """A warm-up, then half a cosine that reaches 0 after the last step."""

    def decay(self, share: float) -> float:
        """Return the half cosine."""
        return 0.5 * (1.0 + math.cos(math.pi * share))
