"""A mean over a run that some losses need: the same on every rank, and checkpointed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RunningMean(nn.Module):
    """The weighted mean of values over all optimizer steps so far, or one in which old steps fade.

    Micro-batches are added up and count from the next optimizer step on. What one step uses is therefore the same
    however it is cut into micro-batches and shared out to ranks.
    """

    value: Tensor
    weight: Tensor

    def __init__(self, momentum: float | None = None) -> None:
        """Begin at 0.

        Args:
            momentum: share of the old value that a step leaves; without it, all values count the same.
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        self._window = torch.zeros(2, dtype=torch.float64)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> RunningMean:
        # Only to another device: half-precision weights would round what was counted.
        self.value, self.weight = (buffer.to(fn(buffer).device) for buffer in (self.value, self.weight))
        return self

    def begin(self) -> None:
        """Forget the micro-batches of a step that never came."""
        self._window = torch.zeros_like(self._window)

    def add(self, values: Float[Tensor, " pair"], weights: Float[Tensor, " pair"]) -> None:
        """Count the values of a micro-batch."""
        values, weights = values.detach().double(), weights.double()
        total = torch.where(weights > 0, values * weights, 0).sum()
        self._window = self._window.to(values.device) + torch.stack([total, weights.sum()])

    def step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """End an optimizer step; `reduce` sums over ranks."""
        total, weight = reduce(self._window.clone()).unbind()
        self.begin()
        mean = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        self.weight += weight
        share = weight / self.weight.clamp(min=1e-300) if self.momentum is None else 1 - self.momentum
        self.value += torch.where(weight > 0, share * (mean - self.value), 0).to(self.value)
