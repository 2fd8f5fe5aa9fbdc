"""Attention over trees of tokens: a shared trunk is computed once, branches see it and not each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dpo_lightning.attention.cpu import CPUTreeAttention
from dpo_lightning.attention.masks import causal_mask
from dpo_lightning.batches import Tree


@dataclass(frozen=True)
class AttentionParams:
    """Options of a model's attention layer besides queries, keys and values."""

    scale: float
    """Factor of the scores."""

    dropout: float = 0.0
    """Dropout of attention weights, in training."""

    softcap: float | None = None
    """Scores become `softcap * tanh(score / softcap)` (Gemma 2, arXiv:2408.00118)."""

    window: int | None = None
    """Number of tokens that a token sees, itself included (sliding-window attention)."""

    def attend(
        self,
        query: Float[Tensor, "1 head new dim"],
        key: Float[Tensor, "1 kv_head all dim"],
        value: Float[Tensor, "1 kv_head all value_dim"],
    ) -> Float[Tensor, "1 head new value_dim"]:
        """Compute causal attention of the last `new` tokens of a sequence to `all` of it."""
        new, total = query.shape[2], key.shape[2]
        if new == 0:
            return query.new_empty(*query.shape[:3], value.shape[3])
        if self.softcap is not None:
            return self.attend_capped(query, key, value, causal_mask(new, total, self.window, query.device))
        # torch's kernel for the plain causal case is faster than one with a dense mask.
        plain = new == total and (self.window is None or total <= self.window)
        mask = None if plain else causal_mask(new, total, self.window, query.device)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout,
            is_causal=plain,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def attend_capped(self, query: Tensor, key: Tensor, value: Tensor, mask: Bool[Tensor, "*rows new all"]) -> Tensor:
        """Compute attention with capped scores by plain operations; torch's kernels have no softcap."""
        assert self.softcap is not None
        # Grouped-query attention: each key head serves several query heads.
        repeats = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(repeats, 1).mT * self.scale
        scores = (scores / self.softcap).tanh() * self.softcap
        weights = (
            scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32).to(value.dtype)
        )
        return torch.dropout(weights, self.dropout, train=True) @ value.repeat_interleave(repeats, 1)


def tree_attention(
    query: Float[Tensor, "row head position dim"],
    key: Float[Tensor, "row kv_head position dim"],
    value: Float[Tensor, "row kv_head position value_dim"],
    trees: Sequence[Tree],
    params: AttentionParams,
) -> Float[Tensor, "row position head value_dim"]:
    """Compute attention in which every branch sees its trunk; padding gets zeros.

    Args:
        query: a row holds one or several trees, one after the other.
        key: as `query`; with fewer heads, each is shared by a group of query heads.
        value: as `key`.
        trees: positions of trunks and branches, in the order of rows and positions.
        params: options of the layer.

    Raises:
        ValueError: a tree ends beyond its row.
    """
    end = max((tree.start + tree.trunk + sum(tree.branches) for tree in trees), default=0)
    if end > query.shape[2]:
        raise ValueError(f"a tree ends at {end}, its row at {query.shape[2]}")
    # Under autocast, rotary embeddings return queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type == "cpu" and not params.dropout:
        out: Tensor = CPUTreeAttention.apply(query, key, value, trees, params.scale, params.softcap, params.window)
        return out
    return attend_by_pieces(query, key, value, trees, params)


def attend_by_pieces(
    query: Tensor, key: Tensor, value: Tensor, trees: Sequence[Tree], params: AttentionParams
) -> Tensor:
    """Compute `tree_attention` by torch's kernels, one call for each trunk and each branch."""
    width, rows = query.shape[2], []
    for row in range(len(query)):
        own = [tree for tree in trees if tree.row == row]
        sizes = [size for tree in own for size in (tree.trunk, *tree.branches)]
        sizes.append(width - sum(sizes))
        # `split` instead of slices, as the gradient of every slice would be a whole row of zeros.
        parts = zip(*(part[row : row + 1].split(sizes, dim=2) for part in (query, key, value)), strict=True)
        pieces = [piece for tree in own for piece in attend_tree(tree, parts, params)]
        padding = query.new_zeros(1, query.shape[1], sizes[-1], value.shape[3])
        rows.append(torch.cat([*pieces, padding], dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous()


def attend_tree(
    tree: Tree, parts: Iterator[tuple[Tensor, Tensor, Tensor]], params: AttentionParams
) -> Iterator[Tensor]:
    """Iterate over the outputs of a tree's trunk and branches; takes as many parts as the tree has."""
    query, trunk_key, trunk_value = next(parts)
    yield params.attend(query, trunk_key, trunk_value)
    for _ in tree.branches:
        query, key, value = next(parts)
        yield params.attend(query, torch.cat([trunk_key, key], dim=2), torch.cat([trunk_value, value], dim=2))
