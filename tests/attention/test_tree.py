"""Attention over trees against plain softmax attention under a dense mask, in float64: values and gradients."""

import jaxtyping
import pytest
import torch
from support.trees import KERNELS, TREES, dense, gradients, tensors

from dpo_lightning.attention import cpu as cpu_attention
from dpo_lightning.attention.tree import AttentionParams, attend_by_pieces, tree_attention
from dpo_lightning.batches import Tree

WAYS = {"cpu": tree_attention, "pieces": attend_by_pieces}


@pytest.fixture(params=["cpu", "cpu, blocks of two", "pieces"])
def attend(request, monkeypatch):
    """Attention over trees, in blocks of queries on a CPU and by torch's kernels elsewhere."""
    name, *blocks = request.param.split(", ")
    if blocks:
        monkeypatch.setattr(cpu_attention, "BLOCK", 2)
    return WAYS[name]


def assert_attends(attend, parts, trees, kernel):
    """Values and gradients are those of the dense mask; torch's capped softmax runs in float32."""
    found, expected = attend(*parts, trees, kernel), dense(*parts, trees, kernel)
    tolerance = 1e-6 if kernel.softcap and attend is attend_by_pieces else 1e-12
    pairs = zip([found, *gradients(found, parts)], [expected, *gradients(expected, parts)], strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert found.is_contiguous()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("trees", TREES)
def test_it_is_attention_under_the_dense_mask(trees, kernel, attend):
    assert_attends(attend, tensors(TREES[trees]), TREES[trees], KERNELS[kernel])


@pytest.mark.parametrize("kernel", ["plain", "softcap and window"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 1), (6, 3)])
def test_so_it_is_however_heads_are_shared(heads, kv_heads, kernel, attend):
    trees = TREES["one after the other"]
    assert_attends(attend, tensors(trees, heads, kv_heads), trees, KERNELS[kernel])


@pytest.mark.parametrize("padding", [0, 1, 7])
def test_padding_gets_zeros_and_no_gradient(padding, attend):
    trees = TREES["several rows"]
    parts = tensors(trees, padding=padding)
    found = attend(*parts, trees, KERNELS["plain"])
    in_parts = gradients(found, parts)
    for row, tree in enumerate(trees):
        length = tree.trunk + sum(tree.branches)
        assert found[row, :length].any(dim=(1, 2)).all()
        assert not found[row, length:].any()
        for gradient in in_parts:
            assert not gradient[row, :, length:].any()


def test_what_stands_in_the_padding_reaches_nothing(attend):
    trees = TREES["several rows"]
    parts = tensors(trees, padding=3)
    clean = attend(*parts, trees, KERNELS["plain"])
    with torch.no_grad():
        for part in parts:
            for row, tree in enumerate(trees):
                part[row, :, tree.trunk + sum(tree.branches) :] = torch.nan
    assert torch.equal(attend(*parts, trees, KERNELS["plain"]), clean)


WRONG = {
    "a branch sees the other": lambda tree: tree._replace(branches=(sum(tree.branches),), numbers=(0,)),
    "a branch sees less of its trunk": lambda tree: Tree(0, 1, tree.trunk - 1, tree.branches, tree.numbers),
    "the trunk is longer by one": lambda tree: Tree(0, 0, tree.trunk + 1, (2, 2), tree.numbers),
    "branches change their lengths": lambda tree: tree._replace(branches=tree.branches[::-1]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_mask_gives_other_numbers(wrong):
    """What the comparisons above are there to find."""
    right = TREES["a pair"]
    parts = tensors(right)
    other = dense(*parts, [WRONG[wrong](tree) for tree in right], KERNELS["plain"])
    assert (tree_attention(*parts, right, KERNELS["plain"]) - other).abs().max() > 0.01


def test_a_window_counts_positions_and_not_places(attend):
    """The second branch's first token follows the trunk; between them stand the tokens of the first."""
    trees, kernel = [Tree(0, 0, 4, (5, 1), (0, 1))], AttentionParams(0.4, window=2)
    parts = tensors(trees, padding=0)
    found = attend(*parts, trees, kernel)[0, -1]
    query, key, value = (part[0] for part in parts)
    seen = [3, 9]  # the trunk's last token, and itself
    groups = torch.arange(4) // 2
    weights = ((query[:, 9:] @ key[groups][:, seen].mT) * 0.4).softmax(-1)
    torch.testing.assert_close(found, (weights @ value[groups][:, seen])[:, 0])


def test_a_softcap_is_applied_before_the_mask(attend):
    """After it, what is hidden would come back with a score of `-softcap`."""
    trees = TREES["a pair"]
    query, key, value = tensors(trees)
    with torch.no_grad():
        value[:, :, 4:7] = 1e6  # the first branch
        seen = attend(query, key, value, trees, AttentionParams(9.0, softcap=0.1))
    assert seen[0, 4:7].min() > 1e3
    assert seen[0, :4].abs().max() < 10
    assert seen[0, 7:9].abs().max() < 10


def test_half_precision_stays_close_and_keeps_its_type(attend):
    trees = TREES["one after the other"]
    exact = tensors(trees)
    for name, kernel in KERNELS.items():
        half = [part.detach().bfloat16().requires_grad_() for part in exact]
        found = attend(*half, trees, kernel)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), dense(*exact, trees, kernel), rtol=0.05, atol=0.05, msg=name)


def test_queries_in_float32_follow_their_values_under_autocast():
    trees = TREES["a pair"]
    query, key, value = tensors(trees, dtype=torch.float32)
    for kernel in (KERNELS["plain"], KERNELS["softcap"]):
        mixed = tree_attention(query, key, value.bfloat16(), trees, kernel)
        assert mixed.dtype == torch.bfloat16
        assert torch.equal(mixed, tree_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), trees, kernel))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_dropout_is_that_of_attention_weights(softcap):
    trees = TREES["one after the other"]
    parts = tensors(trees, padding=0)
    ones = torch.ones_like(parts[2])
    torch.manual_seed(0)
    drawn = [tree_attention(*parts[:2], ones, trees, AttentionParams(0.4, 0.5, softcap)) for _ in range(400)]
    assert not torch.equal(drawn[0], drawn[1])
    mean = torch.stack(drawn).mean(0)  # what is left is scaled up
    assert (mean - 1).abs().max() < 0.3
    assert (drawn[0][0, 0] == 2).logical_or(drawn[0][0, 0] == 0).all()  # the first token sees itself


def test_a_tree_beyond_the_row_is_an_error():
    parts = tensors([Tree(0, 0, 3, (1,), (0,))], padding=0)
    with pytest.raises(ValueError, match="a tree ends at 7, its row at 4"):
        tree_attention(*parts, [Tree(0, 0, 3, (4,), (0,))], KERNELS["plain"])


def test_heads_that_do_not_match_are_caught_while_tests_run():
    query, key, value = tensors(TREES["a pair"])
    with pytest.raises(jaxtyping.TypeCheckError):
        tree_attention(query, key, value[:, :1], TREES["a pair"], KERNELS["plain"])
    with pytest.raises(jaxtyping.TypeCheckError):
        tree_attention(query[0], key[0], value[0], TREES["a pair"], KERNELS["plain"])
