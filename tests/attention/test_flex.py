"""FlexAttention: blocks against the rule for every pair of tokens, its graphs counted, and attention under the mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trees import TREES, dense, on_tokens, tensors
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from dpo_lightning.attention import flex
from dpo_lightning.attention.flex import BLOCK, Forest, attend_by_blocks, block_mask, eager_layers, find_blocks
from dpo_lightning.attention.masks import tree_rule
from dpo_lightning.attention.tree import AttentionParams, tree_attention
from dpo_lightning.batches import Tree

CPU = torch.device("cpu")


def visible_pairs(trees, rows, width, window):
    """Whether any and whether all pairs of tokens of two blocks see each other, from every pair by itself."""
    number = -(-width // BLOCK)
    rule = tree_rule(trees, rows, width, CPU, window)
    at = torch.meshgrid(torch.arange(rows), torch.arange(width), torch.arange(width), indexing="ij")
    seen = torch.zeros(rows, number * BLOCK, number * BLOCK, dtype=torch.bool)
    seen[:, :width, :width] = rule(at[0], torch.zeros(()), *at[1:])
    blocks = seen.view(rows, number, BLOCK, number, BLOCK)
    return blocks.any(4).any(2), blocks.all(4).all(2)


@st.composite
def forests(draw):
    """Trees one after the other in up to two rows, with padding between and after them; lengths around a block."""
    lengths = st.one_of(st.integers(0, 5), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 300]))
    trees, width = [], 0
    for row in range(draw(st.integers(1, 2))):
        place = 0
        for _ in range(draw(st.integers(0, 3))):
            place += draw(st.integers(0, 3))
            trunk, branches = draw(lengths), tuple(draw(st.lists(lengths, min_size=1, max_size=3)))
            trees.append(Tree(row, place, trunk, branches, tuple(range(len(branches)))))
            place += trunk + sum(branches)
        width = max(width, place)
    return trees, row + 1, max(width + draw(st.sampled_from([0, 1, BLOCK])), 1)


@given(forests(), st.sampled_from([None, 1, 3, BLOCK, BLOCK + 1, 257, 5000]))
@settings(max_examples=150, deadline=None)
def test_blocks_are_those_of_the_rule(forest, window):
    trees, rows, width = forest
    found = find_blocks(trees, rows, width, window)
    for blocks, expected in zip(found, visible_pairs(trees, rows, width, window), strict=True):
        assert torch.equal(blocks, expected)


@pytest.mark.parametrize("window", [None, 150])
def test_the_mask_is_that_which_torch_makes_of_the_rule(window):
    trees = [Tree(0, 0, 200, (150, 3), (0, 1)), Tree(0, 355, 130, (0,), (2,)), Tree(1, 0, 0, (300, 20), (3, 4))]
    rule = tree_rule(trees, 2, 500, CPU, window)
    ours, theirs = block_mask(trees, 2, 500, CPU, window), create_block_mask(rule, 2, None, 500, 500, device="cpu")
    assert ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(flex, "compiled_kernel", lambda: flex_attention)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("trees", TREES)
def test_attention_by_blocks_is_that_under_the_dense_mask(trees, window, softcap, uncompiled):
    trees = TREES[trees]
    query, key, value = (part.detach() for part in tensors(trees, value_dim=8))
    mask = Forest(tuple(trees), len(query), query.shape[2]).block_mask(window, CPU)
    found = attend_by_blocks(query, key, value, mask, 0.4, softcap)
    params = AttentionParams(0.4, softcap=softcap, window=window)
    real = on_tokens(trees, query.shape[2])
    torch.testing.assert_close(found[real], dense(query, key, value, trees, params)[real])
    assert torch.isfinite(found).all()


def test_the_blocks_of_a_batch_are_found_once_for_policy_and_reference(monkeypatch):
    made = []
    Forest.of.cache_clear()
    real = flex.block_mask
    monkeypatch.setattr(flex, "block_mask", lambda *args: made.append(args[-1]) or real(*args))
    trees = tuple(TREES["one after the other"])
    for _ in range(2):  # policy and reference
        forest = Forest.of(tuple(tree._replace() for tree in trees), 1, 24)
        for window in (None, 3, None, 3):  # layers
            forest.block_mask(window, CPU)
    assert made == [None, 3]
    Forest.of(trees[:1], 1, 24).block_mask(None, CPU)
    assert len(made) == 3


def test_what_was_made_while_evaluating_serves_training():
    trees = (Tree(0, 0, 41, (3, 2), (0, 1)), Tree(0, 46, 150, (7, 1), (2, 3)))
    with torch.inference_mode():
        Forest.of(trees, 1, 206).block_mask(None, CPU)
    assert not Forest.of(trees, 1, 206).block_mask(None, CPU).kv_indices.is_inference()


@pytest.fixture
def graphs(monkeypatch):
    """Count the graphs that are made of FlexAttention, which runs uncompiled."""
    torch._dynamo.reset()
    flex.compiled_kernel.cache_clear()
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=counter))
    yield counter
    flex.compiled_kernel.cache_clear()
    torch._dynamo.reset()


def test_batches_of_all_lengths_share_a_few_graphs(graphs):
    """The first length, any other, and a row of one block, whose number of blocks is 1 and no symbol."""
    draw = torch.Generator().manual_seed(0)
    for length in (700, 320, 256, 100, 1000, 777, 384, 90, 1400, 513):
        trees = (Tree(0, 0, length // 2, (length // 4, length // 8), (0, 1)),)
        query, key, value = torch.randn(3, 1, 4, length, 16, generator=draw)
        mask = Forest(trees, 1, length).block_mask(None, CPU)
        found = attend_by_blocks(query, key[:, :2], value[:, :2], mask, 0.25)
        expected = tree_attention(query, key[:, :2], value[:, :2], trees, AttentionParams(0.25))
        end = length // 2 + length // 4 + length // 8
        torch.testing.assert_close(found[:, :end], expected[:, :end])
    assert graphs.frame_count <= 3


def test_graphs_of_both_windows_and_data_types_are_all_kept(graphs):
    """Torch's own limit of 8 would be reached; beyond it the kernel is not fused."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for window in (None, 5):
            for softcap in (None, 2.0):
                for length in (400, 600):
                    query, key, value = torch.randn(3, 1, 2, length, 16, dtype=torch.float64).to(dtype)
                    mask = Forest((Tree(0, 0, 300, (50, 20), (0, 1)),), 1, length).block_mask(window, CPU)
                    attend_by_blocks(query, key, value, mask, 0.25, softcap)
    made = graphs.frame_count
    assert made > 8
    attend_by_blocks(query, key, value, mask, 0.25, softcap)
    assert graphs.frame_count == made


def test_the_kernel_is_compiled_also_where_layers_run_eagerly(graphs):
    """As in the self-check's trial of the longest rows: an eager kernel computes all scores at once."""
    query, key, value = torch.randn(3, 1, 2, 300, 16)
    mask = Forest((Tree(0, 0, 200, (50, 20), (0, 1)),), 1, 300).block_mask(None, CPU)
    with eager_layers():
        attend_by_blocks(query, key, value, mask, 0.25)
    assert graphs.frame_count == 1
