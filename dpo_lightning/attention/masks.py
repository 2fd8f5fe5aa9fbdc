"""Which token sees which: causal, within a sliding window, and in trees, as dense masks and as FlexAttention blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from dpo_lightning.batches import Tree


class Forest:
    """A batch's trees as one object: compiled layers would be recompiled for every new tuple."""

    def __init__(self, trees: tuple[Tree, ...], rows: int, width: int) -> None:
        self.trees, self.rows, self.width = trees, rows, width
        self._masks: dict[tuple[int | None, torch.device], BlockMask] = {}

    @staticmethod
    @lru_cache(maxsize=2)
    def of(trees: tuple[Tree, ...], rows: int, width: int) -> Forest:
        """Return the same object for policy and reference, so that its masks are made once."""
        return Forest(trees, rows, width)

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """Return the mask of the layers with this window, made at the first call."""
        if (window, device) not in self._masks:
            with torch.inference_mode(False):  # the mask may be cached in an evaluation and used in training
                self._masks[window, device] = block_mask(self.trees, self.rows, self.width, device, window)
        return self._masks[window, device]


def causal_mask(new: int, total: int, window: int | None, device: torch.device) -> Bool[Tensor, "new all"]:
    """Return which of all `total` tokens the last `new` see."""
    seen = torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
    return seen if window is None else seen.triu(total - new - window + 1)


def tree_rule(
    trees: Sequence[Tree], rows: int, width: int, device: torch.device, window: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention's `mask_mod`: from indices of row, head, query and key to whether the query sees the key."""
    # Per token: its tree (-1 for padding), its branch (0 for the trunk), and its position in the sequence.
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

    # A token sees earlier ones of its tree that are in the trunk or in its own branch.
    rule = lambda row, head, query, key: (  # noqa: E731
        (tree[row, query] == tree[row, key])
        & (query >= key)
        & ((branch[row, key] == 0) | (branch[row, key] == branch[row, query]))
    )
    if window is None:
        return rule
    # The window counts positions in the sequence, where every branch directly follows the trunk.
    return lambda row, head, query, key: (
        rule(row, head, query, key) & (position[row, query] - position[row, key] < window)
    )


def block_mask(
    trees: Sequence[Tree], rows: int, width: int, device: torch.device, window: int | None = None
) -> BlockMask:
    """Return the mask of `tree_rule` as blocks; FlexAttention skips those that no query sees."""
    return create_block_mask(tree_rule(trees, rows, width, device, window), rows, None, width, width, device=device)
