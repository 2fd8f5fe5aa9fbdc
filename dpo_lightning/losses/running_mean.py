"""A running mean for losses with state: the same on every rank, and saved in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RunningMean(nn.Module):
    """The weighted mean of values over all optimizer steps so far, or a moving average of the steps' means.

    Values of micro-batches are summed, and enter the mean at the end of the optimizer step. All micro-batches of a step
    therefore use the same mean, however the step is cut into micro-batches and distributed to ranks.
    """

    value: Tensor
    weight: Tensor

    def __init__(self, momentum: float | None = None) -> None:
        """Start at a mean of 0.

        Args:
            momentum: weight of the old mean in the new one, at each step. Without it, all values count the same.
        """
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        self._window = torch.zeros(2, dtype=torch.float64)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> RunningMean:
        # Changes the device and not the dtype: half precision would round the sums.
        self.value, self.weight = (buffer.to(fn(buffer).device) for buffer in (self.value, self.weight))
        return self

    def begin(self) -> None:
        """Discard the sums of an optimizer step that was not finished."""
        self._window = torch.zeros_like(self._window)

    def add(self, values: Float[Tensor, " pair"], weights: Float[Tensor, " pair"]) -> None:
        """Add the values of a micro-batch to the sums of the current step."""
        values, weights = values.detach().double(), weights.double()
        total = torch.where(weights > 0, values * weights, 0).sum()
        self._window = self._window.to(values.device) + torch.stack([total, weights.sum()])

    def step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Update the mean at the end of an optimizer step; `reduce` sums a tensor over ranks."""
        total, weight = reduce(self._window.clone()).unbind()
        self.begin()
        mean = total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        self.weight += weight
        share = weight / self.weight.clamp(min=1e-300) if self.momentum is None else 1 - self.momentum
        self.value += torch.where(weight > 0, share * (mean - self.value), 0).to(self.value)
