"""Which token sees which: causal, within a window, and in trees, as dense masks and as FlexAttention's blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dpo_lightning.batches import Tree


class Forest:
    """A batch's trees as one object that layers hand on: a compiled layer would be compiled anew for every tuple."""

    def __init__(self, trees: tuple[Tree, ...], rows: int, width: int) -> None:
        """Hold the trees of a batch of `rows` rows of `width` tokens."""
        self.trees, self.rows, self.width = trees, rows, width
        self._masks: dict[tuple[int | None, torch.device], BlockMask] = {}

    @staticmethod
    @lru_cache(maxsize=2)
    def of(trees: tuple[Tree, ...], rows: int, width: int) -> Forest:
        """The same for policy and reference, whose masks are then made once."""
        return Forest(trees, rows, width)

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """The mask of every layer with this window."""
        if (window, device) not in self._masks:
            with torch.inference_mode(False):  # a batch that is trained on may have the trees of one that was evaluated
                self._masks[window, device] = block_mask(self.trees, self.rows, self.width, device, window)
        return self._masks[window, device]


def causal_mask(new: int, total: int, window: int | None, device: torch.device) -> Bool[Tensor, "new all"]:
    """What the last `new` of `total` tokens see."""
    seen = torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
    return seen if window is None else seen.triu(total - new - window + 1)


def tree_rule(
    trees: Sequence[Tree], rows: int, width: int, device: torch.device, window: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Which token sees which, as FlexAttention asks: from indices of row, head, query and key to a truth value."""
    branch, position = torch.zeros(2, rows, width, dtype=torch.int32, device="cpu")
    tree = torch.full((rows, width), -1, dtype=torch.int32, device="cpu")
    for number, (row, start, trunk, branches, _) in enumerate(trees):
        tree[row, start : start + trunk + sum(branches)] = number
        position[row, start : start + trunk] = torch.arange(trunk, device="cpu")
        place = start + trunk
        for k, length in enumerate(branches, start=1):
            branch[row, place : place + length] = k
            position[row, place : place + length] = torch.arange(trunk, trunk + length, device="cpu")
            place += length
    tree, branch, position = (part.to(device, non_blocking=True) for part in (tree, branch, position))

    rule = lambda row, head, query, key: (  # noqa: E731
        (tree[row, query] == tree[row, key])
        & (query >= key)
        & ((branch[row, key] == 0) | (branch[row, key] == branch[row, query]))
    )
    if window is None:
        return rule
    return lambda row, head, query, key: (
        rule(row, head, query, key) & (position[row, query] - position[row, key] < window)
    )


def block_mask(
    trees: Sequence[Tree], rows: int, width: int, device: torch.device, window: int | None = None
) -> BlockMask:
    """The same as blocks, of which FlexAttention leaves out those that nobody sees."""
    return create_block_mask(tree_rule(trees, rows, width, device, window), rows, None, width, width, device=device)
