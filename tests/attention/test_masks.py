"""The rule of trees against the dense mask, and the mask of the last tokens of a sequence."""

from types import SimpleNamespace

import pytest
import torch
from support.batch_layouts import visible
from support.trees import TREES, gradients, on_tokens, positions, tensors

from dpo_lightning.attention.masks import causal_mask, tree_rule
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


def test_the_mask_of_the_last_tokens_of_a_sequence():
    on, off = True, False
    assert causal_mask(2, 4, None, torch.device("cpu")).tolist() == [[on, on, on, off], [on, on, on, on]]
    assert causal_mask(2, 4, 2, torch.device("cpu")).tolist() == [[off, on, on, off], [off, off, on, on]]


def test_what_was_made_while_evaluating_serves_training():
    trees = (Tree(0, 0, 41, (3, 2), (0, 1)), Tree(0, 46, 150, (7, 1), (2, 3)))
    parts = tensors(trees)
    with torch.inference_mode():
        evaluated = tree_attention(*parts, trees, AttentionParams(0.4))
    trained = tree_attention(*parts, trees, AttentionParams(0.4))
    gradients(trained, parts)
    assert torch.equal(trained, evaluated)
