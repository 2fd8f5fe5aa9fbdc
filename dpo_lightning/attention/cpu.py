"""Attention over trees on a CPU: blocks of queries, each a few matrix products, with their own backward pass.

torch's attention for CPUs multiplies small tiles, at a fifth of the speed of larger bf16 products, which took a third
of a step. Here the scores of a block fit in the cache, and the products run at full speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpo_lightning.attention.masks import causal_mask, tree_rule
from dpo_lightning.batches import Tree

BLOCK = 128
"""Queries per head that are computed at once."""

ONE_AT_A_TIME = Lock()
"""Held while the process-wide precision of matrix products is changed."""


class Segment(NamedTuple):
    """Consecutive queries and the keys that they see: a trunk, a branch, or all of a small tree."""

    row: int
    start: int
    length: int
    seen: tuple[slice, ...]
    """Positions of the keys, the segment's own last."""

    tree: tuple[int, ...] = ()
    """Lengths of trunk and branches if the segment is a whole tree."""

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Iterator[Segment]:
        """Iterate over the segments of trees. Small trees are one segment: fewer calls outweigh some masked scores."""
        for tree in trees:
            trunk, place = slice(tree.start, tree.start + tree.trunk), tree.start + tree.trunk
            length = tree.trunk + sum(tree.branches)
            if 0 < length <= BLOCK:
                whole = slice(tree.start, tree.start + length)
                yield cls(tree.row, tree.start, length, (whole,), (tree.trunk, *tree.branches))
                continue
            yield cls(tree.row, tree.start, tree.trunk, (trunk,))
            for length in tree.branches:
                yield cls(tree.row, place, length, (trunk, slice(place, place + length)))
                place += length

    def gather(self, part: Tensor) -> Tensor:
        """Return the `[kv_head, seen, dim]` keys or values that the segment sees."""
        return torch.cat([part[self.row, :, span] for span in self.seen], dim=1)

    def add_to(self, target: Tensor, part: Tensor) -> None:
        """Add gradients of the first seen keys or values to their positions in a row."""
        first = 0
        for span in self.seen:
            own = part[:, first : first + span.stop - span.start]
            target[self.row, :, span.start : span.start + own.shape[1]] += own
            first += own.shape[1]

    def blocks(self) -> Iterator[tuple[slice, int]]:
        """Iterate over even blocks: positions of queries, and the number of keys up to the last of them."""
        # A whole tree is one block, as its mask is made for all of its tokens.
        count = 1 if self.tree else -(-self.length // BLOCK)
        # Keys of the trunk, which all queries of a branch see.
        before = sum(span.stop - span.start for span in self.seen) - self.length
        ends = [self.length * k // count for k in range(count + 1)] if count else [0]
        for first, end in pairwise(ends):
            yield slice(self.start + first, self.start + end), before + end

    def mask(self, block: slice, seen: int, window: int | None) -> Tensor:
        """Return what is added to the scores of a block's queries and its last keys: 0 or minus infinity."""
        if self.tree:
            return tree_mask(self.tree, window)
        new = block.stop - block.start
        if window is None or seen <= window:
            return tree_mask((new,), None)
        return additive_mask(causal_mask(new, seen, window, torch.device("cpu")))


class CPUTreeAttention(torch.autograd.Function):
    """`tree_attention` without dropout; scores and softmax in float32, products in the precision of the values."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # it would make scores half precision
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        trees: Sequence[Tree],
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Compute the output; arguments and result have the shapes of `tree_attention`."""
        ctx.save_for_backward(query, key, value)
        ctx.trees, ctx.kernel = trees, (scale, softcap, window)
        rows, heads, width, _ = query.shape
        out = value.new_zeros(rows, width, heads, value.shape[3])
        for segment in Segment.of(trees):
            # Keys are converted once per segment: scores are computed in float32.
            keys, values = as_float32(segment.gather(key)), segment.gather(value)
            for block, seen in segment.blocks():
                hidden = segment.mask(block, seen, window)
                weights, _ = attention_weights(query[segment.row, :, block], keys[:, :seen], hidden, scale, softcap)
                found = torch.bmm(weights.to(value.dtype), values[:, :seen])
                out[segment.row, block] = found.view(heads, -1, found.shape[2]).transpose(0, 1)
        return out

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """Compute the gradients; the attention weights are recomputed, as only queries, keys and values were saved."""
        query, key, value = ctx.saved_tensors
        scale, softcap, window = ctx.kernel
        in_query = torch.zeros_like(query)
        in_key, in_value = (torch.zeros_like(part, dtype=float32_type(part)) for part in (key, value))
        for segment in Segment.of(ctx.trees):
            keys, values = segment.gather(key), segment.gather(value)
            exact_keys, exact_values = as_float32(keys), as_float32(values)
            for block, seen in segment.blocks():
                queries = query[segment.row, :, block]
                hidden = segment.mask(block, seen, window)
                weights, scores = attention_weights(queries, exact_keys[:, :seen], hidden, scale, softcap)
                in_out = group_heads(gradient[segment.row, block].transpose(0, 1), len(keys))
                with multiply_as(value.dtype):
                    in_weights = torch.bmm(as_float32(in_out), exact_values[:, :seen].mT)
                # weights * (in_weights - sum(in_weights * weights)), in one kernel.
                in_scores = torch._softmax_backward_data(in_weights, weights, -1, weights.dtype)
                if softcap is not None:
                    in_scores *= (
                        1 - (scores / softcap).clamp_(min=-1).square_()
                    )  # masked scores are -inf and get no gradient
                # The remaining products run in the precision of the inputs, as in torch's own kernels.
                in_scores, weights = in_scores.to(query.dtype), weights.to(value.dtype)
                in_query[segment.row, :, block] = scaled_product(in_scores, keys[:, :seen], scale).view_as(queries)
                segment.add_to(in_key, scaled_product(in_scores.mT, group_heads(queries, len(keys)), scale))
                segment.add_to(in_value, torch.bmm(weights.mT, in_out))
        return in_query, in_key.to(key.dtype), in_value.to(value.dtype), None, None, None, None


def attention_weights(
    query: Tensor, key: Tensor, hidden: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return the softmax of a block's scores `[kv_head, group * query, key]`, and the scores themselves.

    Args:
        query: `[head, query, dim]`, the last of the keys' tokens.
        key: `[kv_head, key, dim]`, in the precision of the scores.
        hidden: `[query, key]` of the last keys, minus infinity where a query does not see the key.
        scale: factor of the scores.
        softcap: scores become `softcap * tanh(score / softcap)`.
    """
    new, total = query.shape[1], key.shape[1]
    with multiply_as(query.dtype):
        scores = scaled_product(as_float32(group_heads(query, len(key))), key.mT, scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.view(len(key), -1, new, total)[..., total - hidden.shape[1] :] += hidden
    return scores.softmax(-1), scores


@lru_cache(maxsize=256)
def tree_mask(lengths: tuple[int, ...], window: int | None) -> Tensor:
    """Return the additive `[query, key]` mask of a tree, given the lengths of its trunk and branches."""
    trunk, *branches = lengths
    cpu, at = torch.device("cpu"), torch.arange(sum(lengths), device="cpu")
    # The tree alone in a row, so that its mask can be cached by its lengths.
    rule = tree_rule([Tree(0, 0, trunk, tuple(branches), ())], 1, len(at), cpu, window)
    return additive_mask(rule(at[:1], at[:1], at[:, None], at))


def additive_mask(seen: Tensor) -> Tensor:
    """Turn a boolean mask into 0 where a key is seen and minus infinity elsewhere."""
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, -torch.inf)


@contextmanager
def multiply_as(dtype: torch.dtype) -> Iterator[None]:
    """Within the block, multiply float32 factors that hold bf16 values as bf16; sums stay in float32."""
    if dtype != torch.bfloat16:
        yield
        return
    precision: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with ONE_AT_A_TIME:  # the setting is process-wide
        before = precision.fp32_precision
        precision.fp32_precision = "bf16"
        try:
            yield
        finally:
            precision.fp32_precision = before


def scaled_product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """Multiply batches of matrices and a number, rounding once."""
    # `beta=0` ignores the first argument; `alpha` scales before the result is rounded.
    return torch.baddbmm(one.new_zeros(()), one, other, beta=0, alpha=scale)


def group_heads(part: Tensor, groups: int) -> Tensor:
    """Reshape `[head, token, dim]` to `[kv_head, group * token, dim]`, as several heads share a key."""
    return part.reshape(groups, -1, part.shape[2])


def float32_type(part: Tensor) -> torch.dtype:
    """Return float32, or the tensor's own type if that is wider."""
    return torch.promote_types(part.dtype, torch.float32)


def as_float32(part: Tensor) -> Tensor:
    """Convert a tensor to `float32_type`."""
    return part.to(float32_type(part))
