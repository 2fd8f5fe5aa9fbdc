"""`RoundedUpdates`: the share of updates that rounding loses, where trained weights are bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from dpo_lightning.log import logger
from dpo_lightning.sharding import local_part

HALF = (torch.bfloat16, torch.float16)

MOST_VALUES = 1 << 20
"""Weights that are compared at most, spread evenly: the share of all differs from theirs by 0.1 % at most (2 sigma)."""

LEAST = 0.01
"""Share of lost updates from which a warning is given."""

MUCH_MORE = 0.25
"""Growth of the share after which it is given again."""

REMEDY = (
    "--model.policy.dtype float32 with --trainer.precision bf16-mixed keeps them; where memory forbids it, an "
    "optimizer that carries them over, such as --model.optimizer optimi.AdamW (docs/memory.md)"
)


class Sample(NamedTuple):
    """Some weights of a parameter before a step, and which of them have a gradient other than 0."""

    parameter: nn.Parameter
    before: Tensor
    moved: Tensor
    step: int
    """Every so many of its weights are in the sample."""


class RoundedUpdates(Callback):
    """Report how many of the updates of weights in half precision are smaller than what these can hold.

    A weight counts if its gradient is not 0, and as lost if the step leaves it as it was. This is measured in the first
    step and at each log line (`train/rounded_updates`). Optimizers that carry small updates over, by Kahan summation or
    stochastic rounding, lose nothing although most weights stay as they were: with these, nothing is measured.
    """

    def __init__(self) -> None:
        """Start before the first step."""
        self._samples: list[Sample] = []
        self._measured = False
        self._reported = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Log before training that updates may be lost."""
        self._samples, self._measured, self._reported = [], False, 0.0
        half = list(find_half(pl_module.policy.parameters()))
        if not half or any(map(carries_over, trainer.optimizers)):
            return
        rate = pl_module.learning_rate
        limit = min(4 * rate / torch.finfo(each.dtype).eps for each in half)
        logger.info(
            f"note: the weights that are trained are stored in {name_types(half)}: a change of {rate:g}, the learning "
            f"rate, is lost in those above {limit:.1g}. The first step measures how many updates are lost"
        )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Keep some weights of a step that is measured."""
        self._samples = []
        if self._is_due(trainer) and not carries_over(optimizer):
            self._samples = draw_samples(list(find_half(pl_module.policy.parameters())), MOST_VALUES)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Compare these weights after the step; log the share, and warn if it is large."""
        samples, self._samples = self._samples, []
        if not samples:
            return
        counts = trainer.strategy.reduce(count_lost(samples), reduce_op="sum")
        lost, moved = counts.tolist()
        if not moved:  # a step that was dropped
            return
        self._measured = True
        share = lost / moved
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for each in trainer.loggers:
                each.log_metrics({"train/rounded_updates": share}, trainer.global_step)
            pl_module.log("train/rounded_updates", torch.tensor(share), logger=False, batch_size=1)
        if share >= LEAST and (not self._reported or share >= self._reported + MUCH_MORE):
            self._reported = share
            kind = name_types([sample.parameter for sample in samples])
            what = f"{share:.1%} of the updates of {kind} weights were lost"
            logger.warning(f"step {trainer.global_step}: {what}: {REMEDY}")

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the step that comes is the first one, or has a log line."""
        return not self._measured or (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def find_half(parameters: Iterable[nn.Parameter]) -> Iterator[nn.Parameter]:
    """Iterate over the trained parameters in bfloat16 or float16."""
    return (each for each in parameters if each.requires_grad and each.dtype in HALF)


def name_types(parameters: Iterable[nn.Parameter]) -> str:
    """The names of the data types of parameters."""
    return " and ".join(sorted({str(each.dtype).removeprefix("torch.") for each in parameters}))


def carries_over(optimizer: Any) -> bool:
    """Whether an optimizer keeps what rounding takes from an update: Kahan summation, or stochastic rounding.

    optimi names the first `kahan_sum`, which None switches on for weights in half precision; torchao names the second
    `bf16_stochastic_round`.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Lightning wraps it
    options = {**optimizer.defaults, **vars(optimizer)}
    return options.get("kahan_sum", False) is not False or bool(options.get("bf16_stochastic_round"))


def draw_samples(parameters: list[nn.Parameter], most: int) -> list[Sample]:
    """Copy every nth weight of parameters that have a gradient, `most` in all.

    Args:
        parameters: the parameters, which may be sharded: this rank's part is taken.
        most: the number of weights.
    """
    total = sum(local_part(each).numel() for each in parameters)
    step = find_prime(-(-total // most)) if total > most else 1
    samples = []
    for each in parameters:
        if each.grad is None:
            continue
        before = local_part(each.detach()).flatten()[::step].clone()
        samples.append(Sample(each, before, local_part(each.grad).flatten()[::step] != 0, step))
    return samples


def find_prime(least: int) -> int:
    """The smallest prime from `least` on: with it, the weights of a matrix come from all of its columns."""
    number = max(2, least)
    while any(number % other == 0 for other in range(2, int(number**0.5) + 1)):
        number += 1
    return number


def count_lost(samples: list[Sample]) -> Tensor:
    """Count the weights that a step should have moved and left as they were, and those that it should have moved.

    A step that was dropped has no gradients any more, and counts nothing.
    """
    counts = torch.zeros(2, device=samples[0].before.device, dtype=torch.float64)
    for parameter, before, moved, step in samples:
        if parameter.grad is None:
            continue
        after = local_part(parameter.detach()).flatten()[::step]
        counts += torch.stack([((after == before) & moved).sum(), moved.sum()])
    return counts
