"""FlexAttention over trees of tokens, for GPUs: which blocks of tokens see each other, and the compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dpo_lightning.attention.masks import tree_rule
from dpo_lightning.batches import Tree, move

BLOCK = 128
"""Tokens in a block of queries or keys; FlexAttention skips pairs of blocks in which nothing is seen."""

SMALLEST_HEAD = 16
"""Smallest size of a head that the kernel takes, which is that of Triton's matrix products."""

MOST_GRAPHS = 64
"""Graphs that torch may compile of FlexAttention: for each data type, with and without gradients, window and softcap.

Beyond torch's own limit of 8 it would silently compute all scores of a row at once, without a fused kernel.
"""


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


def attend_by_blocks(
    query: Float[Tensor, "row head position dim"],
    key: Float[Tensor, "row kv_head position dim"],
    value: Float[Tensor, "row kv_head position value_dim"],
    mask: BlockMask,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "row position head value_dim"]:
    """Compute attention under a block mask by one fused kernel; padding gets values that mean nothing."""
    with torch.compiler.set_stance("default") if _eager else nullcontext():
        out = compiled_kernel()(
            query,
            key,
            value,
            score_mod=None if softcap is None else softcap_rule(softcap),
            block_mask=mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
            # The kernel for short queries, which is for generation, does not take every size of head.
            kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
        )
    return out.transpose(1, 2).contiguous()


_eager = 0
"""Number of `eager_layers` blocks around a call. Setting the stance takes 50 microseconds: no step does it."""


@contextmanager
def eager_layers() -> Iterator[None]:
    """Run compiled layers eagerly within the block; FlexAttention stays compiled.

    Eagerly, it would compute all scores of a row at once.
    """
    global _eager  # noqa: PLW0603
    _eager += 1
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _eager -= 1


@lru_cache(maxsize=1)
def compiled_kernel() -> Callable[..., Any]:
    """Return FlexAttention, compiled once for all lengths: lengths that change become symbols in its graph."""
    limits: Any = torch.compiler.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_GRAPHS)
    return torch.compile(flex_attention)


@lru_cache(maxsize=8)
def softcap_rule(softcap: float) -> Callable[..., Tensor]:
    """Return FlexAttention's `score_mod` for capped scores; the same function for the same cap."""
    return lambda score, *_: softcap * torch.tanh(score / softcap)


def block_mask(
    trees: Sequence[Tree], rows: int, width: int, device: torch.device, window: int | None = None
) -> BlockMask:
    """Return the mask of `tree_rule` as blocks.

    Blocks are found from the lengths of trunks and branches: torch's `create_block_mask` evaluates the rule for every
    pair of tokens, which takes memory quadratic in the width.
    """
    seen, whole = find_blocks(trees, rows, width, window)
    blocks = [part for kind in (seen & ~whole, whole) for part in order_blocks(kind)]
    partial_count, partial, full_count, full = (move(part, device) for part in blocks)
    rule = tree_rule(trees, rows, width, device, window)
    return BlockMask.from_kv_blocks(
        partial_count, partial, full_count, full, BLOCK, mask_mod=rule, seq_lengths=(width, width)
    )


def order_blocks(blocks: Bool[Tensor, "row query_block key_block"]) -> tuple[Tensor, Tensor]:
    """Return how many key blocks each query block has, and their numbers first; each with a dimension for heads."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]


class Part(NamedTuple):
    """Consecutive queries and keys of a tree of which every query sees all keys, or all that are not after it."""

    row: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    shift: int
    """Distance of a query from a key in the sequence, less their distance in the row."""


def find_parts(trees: Sequence[Tree]) -> Iterator[Part]:
    """Iterate over the parts of trees: each trunk and branch with itself, and each branch with its trunk."""
    for row, start, trunk, branches, _ in trees:
        stem = (start, start + trunk)
        yield Part(row, stem, stem, 0)
        end = stem[1]
        for length in branches:
            begin, end = end, end + length
            yield Part(row, (begin, end), (begin, end), 0)
            yield Part(row, (begin, end), stem, stem[1] - begin)


def find_blocks(
    trees: Sequence[Tree], rows: int, width: int, window: int | None = None
) -> tuple[Bool[Tensor, "row block block"], Bool[Tensor, "row block block"]]:
    """Find for each pair of a query block and a key block whether any query sees any key, and whether each sees all.

    Args:
        trees: positions of trunks and branches.
        rows: number of rows.
        width: positions per row.
        window: number of tokens that a token sees, itself included.
    """
    number = -(-width // BLOCK)
    counts = np.zeros((rows, number, number), dtype=np.int64)  # pairs of tokens that see each other
    within = np.ones((rows, number, number), dtype=bool)  # whether all of them are within the window
    padding = np.zeros((rows, number * BLOCK), dtype=bool)
    padding[:, :width] = True
    for row, queries, keys, shift in find_parts(trees):
        padding[row, slice(*queries)] = False
        if queries[0] == queries[1] or keys[0] == keys[1]:
            continue
        (first, q_start, q_end), (k_first, k_start, k_end) = cut(*queries), cut(*keys)
        seen = np.outer(q_end - q_start, k_end - k_start)
        if queries == keys:  # within a trunk or a branch, a token sees those that are not after it
            length = q_end - q_start
            seen = np.tril(seen, -1) + np.diag(length * (length + 1) // 2)
        place = (row, slice(first, first + len(q_start)), slice(k_first, k_first + len(k_start)))
        if window is not None:
            nearest = q_start[:, None] - (k_end[None] - 1) + shift
            farthest = (q_end[:, None] - 1) - k_start[None] + shift
            seen[nearest >= window] = 0
            within[place] &= (farthest < window) | (seen == 0)
        counts[place] += seen
    # A token of padding sees itself: the softmax of a row that sees nothing is NaN.
    on_diagonal = np.arange(number)
    counts[:, on_diagonal, on_diagonal] += padding.reshape(rows, number, BLOCK).sum(-1)
    return torch.from_numpy(counts > 0), torch.from_numpy((counts == BLOCK * BLOCK) & within)


def cut(start: int, end: int) -> tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cut a range at multiples of `BLOCK`: the first block's number, and where each piece starts and ends."""
    first, last = start // BLOCK, (end - 1) // BLOCK
    borders = np.arange(first, last + 2) * BLOCK
    return first, np.maximum(borders[:-1], start), np.minimum(borders[1:], end)
