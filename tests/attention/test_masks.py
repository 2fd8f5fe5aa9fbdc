"""Masks as a rule and as FlexAttention's blocks against the dense mask."""

from types import SimpleNamespace

import pytest
import torch
from support.batch_layouts import visible
from support.trees import TREES, dense, gradients, on_tokens, positions, tensors
from torch.nn.attention.flex_attention import flex_attention

from dpo_lightning.attention import masks
from dpo_lightning.attention.masks import Forest, causal_mask, tree_rule
from dpo_lightning.attention.tree import AttentionParams, tree_attention
from dpo_lightning.batches import Tree


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("trees", TREES)
def test_the_rule_for_blocks_is_that_of_the_dense_mask(trees, window):
    trees = TREES[trees]
    query = tensors(trees)[0]
    rows, width = query.shape[0], query.shape[2]
    rule = tree_rule(trees, rows, width, query.device, window)
    at = torch.meshgrid(torch.arange(rows), torch.arange(width), torch.arange(width), indexing="ij")
    found = rule(at[0], torch.zeros(()), *at[1:])
    seen = visible(SimpleNamespace(input_ids=query[:, 0, :, 0], trees=trees))
    counted = positions(trees, rows, width)
    seen &= counted[:, :, None] - counted[:, None, :] < (window or width)
    real = on_tokens(trees, width)
    assert torch.equal(found[real], seen[real])
    assert not (found & ~real[:, :, None] & real[:, None, :]).any()
    assert found[~real].any(1).all()  # padding sees itself: a row of a softmax that sees nothing is no number


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("trees", TREES)
def test_attention_by_blocks_is_that_under_the_dense_mask(trees, window):
    trees = TREES[trees]
    query, key, value = (part.detach() for part in tensors(trees, value_dim=8))
    mask = Forest(tuple(trees), len(query), query.shape[2]).block_mask(window, query.device)
    found = flex_attention(query, key, value, block_mask=mask, scale=0.4, enable_gqa=True).transpose(1, 2)
    real = on_tokens(trees, query.shape[2])
    torch.testing.assert_close(found[real], dense(query, key, value, trees, AttentionParams(0.4, window=window))[real])
    assert torch.isfinite(found).all()


def test_the_blocks_of_a_batch_are_found_once_for_policy_and_reference(monkeypatch):
    made = []
    Forest.of.cache_clear()
    real = masks.block_mask
    monkeypatch.setattr(masks, "block_mask", lambda *args: made.append(args[-1]) or real(*args))
    trees = tuple(TREES["one after the other"])
    for _ in range(2):  # policy and reference
        forest = Forest.of(tuple(tree._replace() for tree in trees), 1, 24)
        for window in (None, 3, None, 3):  # layers
            forest.block_mask(window, torch.device("cpu"))
    assert made == [None, 3]
    Forest.of(trees[:1], 1, 24).block_mask(None, torch.device("cpu"))
    assert len(made) == 3


def test_the_mask_of_the_last_tokens_of_a_sequence():
    on, off = True, False
    assert causal_mask(2, 4, None, torch.device("cpu")).tolist() == [[on, on, on, off], [on, on, on, on]]
    assert causal_mask(2, 4, 2, torch.device("cpu")).tolist() == [[off, on, on, off], [off, off, on, on]]


def test_what_was_made_while_evaluating_serves_training():
    trees = (Tree(0, 0, 41, (3, 2), (0, 1)), Tree(0, 46, 150, (7, 1), (2, 3)))
    parts = tensors(trees)
    with torch.inference_mode():
        evaluated = tree_attention(*parts, trees, AttentionParams(0.4))
        Forest.of(trees, 1, 206).block_mask(None, torch.device("cpu"))
    assert not Forest.of(trees, 1, 206).block_mask(None, torch.device("cpu")).kv_indices.is_inference()
    trained = tree_attention(*parts, trees, AttentionParams(0.4))
    gradients(trained, parts)
    assert torch.equal(trained, evaluated)
