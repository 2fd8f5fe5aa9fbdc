"""Attention over trees on a CPU: blocks of queries, each a few matrix products, with a backward pass of its own.

torch's attention for CPUs multiplies small tiles, at a fifth of the speed of larger bf16 products, and took a third of
a step. Here the scores of a block stay in the cache, and its products run at full speed.
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
"""Queries of each head that are computed at once."""

ONE_AT_A_TIME = Lock()
"""Held while the precision of products is another."""


class Stretch(NamedTuple):
    """Tokens that follow each other, and what they see: a trunk, a branch, or all of a tree of few tokens."""

    row: int
    start: int
    length: int
    seen: tuple[slice, ...]
    """Places of keys, its own last."""

    tree: tuple[int, ...] = ()
    """Lengths of trunk and branches where it is a whole tree."""

    @classmethod
    def of(cls, trees: Sequence[Tree]) -> Iterator[Stretch]:
        """Those of some trees. Small ones are computed whole: a few hidden scores cost less than as many calls."""
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

    def gathered(self, part: Tensor) -> Tensor:
        """`[kv_head, seen, dim]` of keys or values."""
        return torch.cat([part[self.row, :, span] for span in self.seen], dim=1)

    def spread(self, target: Tensor, part: Tensor) -> None:
        """Add to a row what belongs to the first of the seen places."""
        first = 0
        for span in self.seen:
            own = part[:, first : first + span.stop - span.start]
            target[self.row, :, span.start : span.start + own.shape[1]] += own
            first += own.shape[1]

    def blocks(self) -> Iterator[tuple[slice, int]]:
        """Places of queries, and how many of the seen keys come up to the last of them; blocks are about even."""
        count = 1 if self.tree else -(-self.length // BLOCK)
        before = sum(span.stop - span.start for span in self.seen) - self.length
        ends = [self.length * k // count for k in range(count + 1)] if count else [0]
        for first, end in pairwise(ends):
            yield slice(self.start + first, self.start + end), before + end

    def unseen(self, block: slice, seen: int, window: int | None) -> Tensor:
        """What a block's queries do not see of the last keys."""
        if self.tree:
            return unseen_in_tree(self.tree, window)
        new = block.stop - block.start
        if window is None or seen <= window:
            return unseen_in_tree((new,), None)
        return unseen(causal_mask(new, seen, window, torch.device("cpu")))


class CPUTreeAttention(torch.autograd.Function):
    """`tree_attention` without dropout; scores and their softmax in float32, products in the values' precision."""

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
        """Arguments and output have the shapes of `tree_attention`."""
        ctx.save_for_backward(query, key, value)
        ctx.trees, ctx.kernel = trees, (scale, softcap, window)
        rows, heads, width, _ = query.shape
        out = value.new_zeros(rows, width, heads, value.shape[3])
        for stretch in Stretch.of(trees):
            keys, values = exact(stretch.gathered(key)), stretch.gathered(value)
            for block, seen in stretch.blocks():
                hidden = stretch.unseen(block, seen, window)
                weights, _ = attention_weights(query[stretch.row, :, block], keys[:, :seen], hidden, scale, softcap)
                found = torch.bmm(weights.to(value.dtype), values[:, :seen])
                out[stretch.row, block] = found.view(heads, -1, found.shape[2]).transpose(0, 1)
        return out

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """Weights are computed again: nothing but queries, keys and values was kept."""
        query, key, value = ctx.saved_tensors
        scale, softcap, window = ctx.kernel
        in_query = torch.zeros_like(query)
        in_key, in_value = (torch.zeros_like(part, dtype=exact_type(part)) for part in (key, value))
        for stretch in Stretch.of(ctx.trees):
            keys, values = stretch.gathered(key), stretch.gathered(value)
            exact_keys, exact_values = exact(keys), exact(values)
            for block, seen in stretch.blocks():
                queries = query[stretch.row, :, block]
                hidden = stretch.unseen(block, seen, window)
                weights, scores = attention_weights(queries, exact_keys[:, :seen], hidden, scale, softcap)
                in_out = grouped(gradient[stretch.row, block].transpose(0, 1), len(keys))
                with products_of(value.dtype):
                    in_weights = torch.bmm(exact(in_out), exact_values[:, :seen].mT)
                in_scores = torch._softmax_backward_data(in_weights, weights, -1, weights.dtype)
                if softcap is not None:
                    in_scores *= 1 - (scores / softcap).clamp_(min=-1).square_()  # what is hidden has no gradient
                in_scores, weights = in_scores.to(query.dtype), weights.to(value.dtype)
                in_query[stretch.row, :, block] = product(in_scores, keys[:, :seen], scale).view_as(queries)
                stretch.spread(in_key, product(in_scores.mT, grouped(queries, len(keys)), scale))
                stretch.spread(in_value, torch.bmm(weights.mT, in_out))
        return in_query, in_key.to(key.dtype), in_value.to(value.dtype), None, None, None, None


def attention_weights(
    query: Tensor, key: Tensor, hidden: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Softmax of a block's scores `[kv_head, group * query, key]`, and the scores, of which hidden ones are infinite.

    Args:
        query: `[head, query, dim]`, the last of the keys' tokens.
        key: `[kv_head, key, dim]`, in the precision of the scores.
        hidden: `[query, key]` of the last keys, minus infinity where a query does not see.
        scale: scores are multiplied by this.
        softcap: scores become `softcap * tanh(score / softcap)`.
    """
    new, total = query.shape[1], key.shape[1]
    with products_of(query.dtype):
        scores = product(exact(grouped(query, len(key))), key.mT, scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.view(len(key), -1, new, total)[..., total - hidden.shape[1] :] += hidden
    return scores.softmax(-1), scores


@lru_cache(maxsize=256)
def unseen_in_tree(lengths: tuple[int, ...], window: int | None) -> Tensor:
    """`[query, key]` of a tree, given the lengths of its trunk and its branches: minus infinity where none is seen."""
    trunk, *branches = lengths
    cpu, at = torch.device("cpu"), torch.arange(sum(lengths), device="cpu")
    rule = tree_rule([Tree(0, 0, trunk, tuple(branches), ())], 1, len(at), cpu, window)
    return unseen(rule(at[:1], at[:1], at[:, None], at))


def unseen(seen: Tensor) -> Tensor:
    """What is added to scores: minus infinity where a token is not seen."""
    return torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, -torch.inf)


@contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Let float32 factors that are bf16 numbers be multiplied as such; sums stay in float32."""
    if dtype != torch.bfloat16:
        yield
        return
    precision: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with ONE_AT_A_TIME:  # the setting is the whole process's
        before = precision.fp32_precision
        precision.fp32_precision = "bf16"
        try:
            yield
        finally:
            precision.fp32_precision = before


def product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """Matrix products times a number, rounded once."""
    return torch.baddbmm(one.new_zeros(()), one, other, beta=0, alpha=scale)


def grouped(part: Tensor, groups: int) -> Tensor:
    """`[kv_head, group * token, dim]` of `[head, token, dim]`: heads that share a key are multiplied at once."""
    return part.reshape(groups, -1, part.shape[2])


def exact_type(part: Tensor) -> torch.dtype:
    """float32, or what is more exact."""
    return torch.promote_types(part.dtype, torch.float32)


def exact(part: Tensor) -> Tensor:
    """In float32 at least."""
    return part.to(exact_type(part))
