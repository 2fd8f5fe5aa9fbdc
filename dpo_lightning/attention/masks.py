"""Which token sees which: causal, within a sliding window, and in trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from dpo_lightning.batches import Tree, move


def causal_mask(new: int, total: int, window: int | None, device: torch.device) -> Bool[Tensor, "new all"]:
    """Return which of all `total` tokens the last `new` see."""
    seen = torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
    return seen if window is None else seen.triu(total - new - window + 1)


def tree_rule(
    trees: Sequence[Tree], rows: int, width: int, device: torch.device, window: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention's `mask_mod`: from indices of row, head, query and key to whether the query sees the key.

    A token of padding sees itself and nothing else.
    """
    # Per key: the end of the queries that see it, which is its branch's, or its tree's for a key of the trunk.
    until = torch.arange(1, width + 1, dtype=torch.int32, device="cpu").repeat(rows, 1)
    position = torch.zeros(rows, width, dtype=torch.int32, device="cpu")
    for row, start, trunk, branches, _ in trees:
        until[row, start : start + trunk] = start + trunk + sum(branches)
        position[row, start : start + trunk] = torch.arange(trunk, device="cpu")
        place = start + trunk
        for length in branches:
            until[row, place : place + length] = place + length
            position[row, place : place + length] = torch.arange(trunk, trunk + length, device="cpu")
            place += length
    until = move(until, device)
    rule = lambda row, head, query, key: (key <= query) & (query < until[row, key])  # noqa: E731
    if window is None:
        return rule
    # The window counts positions in the sequence, where every branch directly follows the trunk. It is added here, as
    # compiled kernels treat a number of the rule as a symbol.
    reach, position = move(position + window, device), move(position, device)
    return lambda row, head, query, key: rule(row, head, query, key) & (position[row, query] < reach[row, key])
