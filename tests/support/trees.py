"""Trees in rows, random queries, keys and values for them, and attention under the dense mask."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from dpo_lightning.attention.tree import AttentionParams
from dpo_lightning.batches import Tree
from support.batch_layouts import visible

TREES = {
    "a pair": [Tree(0, 0, 4, (3, 2), (0, 1))],
    "a sequence by itself": [Tree(0, 0, 6, (0,), (0,))],
    "branches without a token": [Tree(0, 0, 4, (0, 3, 0), (0, 1, 2)), Tree(0, 7, 2, (0, 0), (3, 4))],
    "no trunk": [Tree(0, 0, 0, (3, 4), (0, 1))],
    "nothing": [Tree(0, 0, 0, (0, 0), (0, 1)), Tree(0, 0, 2, (1,), (2,))],
    "four answers": [Tree(0, 0, 3, (2, 1, 4, 2), (0, 1, 2, 3))],
    "one after the other": [Tree(0, 0, 4, (2, 3), (0, 2)), Tree(0, 9, 1, (4, 1), (1, 3)), Tree(0, 15, 5, (0,), (4,))],
    "several rows": [Tree(0, 0, 3, (1, 2), (0, 3)), Tree(1, 0, 2, (4, 3), (1, 4)), Tree(2, 0, 1, (0, 1), (2, 5))],
    "a row of nothing but padding": [Tree(1, 0, 3, (1, 2), (0, 1))],
}
KERNELS = {
    "plain": AttentionParams(0.4),
    "window": AttentionParams(0.4, window=3),
    "window of one": AttentionParams(0.4, window=1),
    "window beyond all": AttentionParams(0.4, window=100),
    "softcap": AttentionParams(2.0, softcap=1.5),
    "softcap and window": AttentionParams(2.0, softcap=1.5, window=3),
}


def positions(trees, rows, width):
    """The position of each token in its sequence."""
    found = torch.zeros(rows, width, dtype=torch.long)
    for tree in trees:
        counted = [*range(tree.trunk), *(tree.trunk + k for length in tree.branches for k in range(length))]
        found[tree.row, tree.start : tree.start + len(counted)] = torch.tensor(counted, dtype=torch.long)
    return found


def dense(query, key, value, trees, kernel):
    """Softmax attention under a mask of every position against every other; nothing seen gives zeros."""
    rows, heads, width = query.shape[:3]
    sees = visible(SimpleNamespace(input_ids=torch.zeros(rows, width), trees=trees))
    at = positions(trees, rows, width)
    if kernel.window is not None:  # in the sequence and not in the row
        sees &= at[:, :, None] - at[:, None, :] < kernel.window
    key, value = (part.repeat_interleave(heads // key.shape[1], dim=1) for part in (key, value))
    scores = torch.einsum("rhqd,rhkd->rhqk", query, key) * kernel.scale
    if kernel.softcap is not None:
        scores = torch.tanh(scores / kernel.softcap) * kernel.softcap
    weights = torch.where(sees[:, None], scores, -torch.inf).softmax(-1).nan_to_num(0)
    return torch.einsum("rhqk,rhkd->rqhd", weights, value)


def tensors(trees, heads=4, kv_heads=2, value_dim=6, padding=2, dtype=torch.float64):
    """Random queries, keys and values that hold the trees and some padding."""
    width = padding + max(tree.start + tree.trunk + sum(tree.branches) for tree in trees)
    rows, draw = 1 + max(tree.row for tree in trees), torch.Generator().manual_seed(0)
    shapes = (heads, 8), (kv_heads, 8), (kv_heads, value_dim)
    parts = [torch.randn(rows, count, width, dim, generator=draw, dtype=torch.float64) for count, dim in shapes]
    return [part.to(dtype).requires_grad_() for part in parts]


def gradients(out, parts):
    """Of something that no symmetry hides."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((out * weights).sum(), parts)


def on_tokens(trees, width):
    """`[row, position]`: whether a token of a tree stands there."""
    found = torch.zeros(1 + max(tree.row for tree in trees), width, dtype=torch.bool)
    for tree in trees:
        found[tree.row, tree.start : tree.start + tree.trunk + sum(tree.branches)] = True
    return found
