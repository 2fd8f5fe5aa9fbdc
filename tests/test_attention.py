"""Attention over trees against plain softmax attention under a dense mask, in float64: values and gradients."""

import threading
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from layouts import visible
from torch.nn.attention.flex_attention import flex_attention

from dpo_lightning import attention, cpu_attention
from dpo_lightning.attention import Forest, Kernel, by_pieces, causal_mask, tree_attention, tree_rule
from dpo_lightning.cpu_attention import beyond_window, products_of, unseen_in_tree
from dpo_lightning.types import Tree

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
    "plain": Kernel(0.4),
    "window": Kernel(0.4, window=3),
    "window of one": Kernel(0.4, window=1),
    "window beyond all": Kernel(0.4, window=100),
    "softcap": Kernel(2.0, softcap=1.5),
    "softcap and window": Kernel(2.0, softcap=1.5, window=3),
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


WAYS = {"cpu": tree_attention, "pieces": by_pieces}


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
    tolerance = 1e-6 if kernel.softcap and attend is by_pieces else 1e-12
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
    trees, kernel = [Tree(0, 0, 4, (5, 1), (0, 1))], Kernel(0.4, window=2)
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
        seen = attend(query, key, value, trees, Kernel(9.0, softcap=0.1))
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


@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_is_no_worse_than_torchs_own_kernel(mixed):
    """Scores and sums are kept in float32: rounded ones would be four times as far off."""
    trees = [Tree(0, 0, 90, (70, 40), (0, 1)), Tree(0, 200, 150, (5, 60), (2, 3))]
    half = [(2 * part).detach().bfloat16().requires_grad_() for part in tensors(trees)]
    exact = [part.detach().double().requires_grad_() for part in half]
    expected = dense(*exact, trees, KERNELS["plain"])
    expected = [expected, *gradients(expected, exact)]
    errors = {}
    for name, way in WAYS.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found = way(*half, trees, KERNELS["plain"])
        pairs = zip([found, *gradients(found, half)], expected, strict=True)
        errors[name] = [float((one.double() - other).norm() / other.norm()) for one, other in pairs]
    for own, torchs in zip(errors["cpu"], errors["pieces"], strict=True):
        assert own < 1.5 * torchs


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_precision_of_other_products_is_left_as_it_was(before):
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        trees = TREES["a pair"]
        parts = [part.detach().bfloat16().requires_grad_() for part in tensors(trees)]
        gradients(tree_attention(*parts, trees, KERNELS["plain"]), parts)
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(precision)


def test_the_precision_is_left_as_it_was_after_an_error_and_by_threads():
    precision = torch.backends.mkldnn.matmul
    before = precision.fp32_precision
    with pytest.raises(RuntimeError, match="size"), products_of(torch.bfloat16):
        torch.ones(2) @ torch.ones(3)
    assert precision.fp32_precision == before
    trees = TREES["one after the other"]
    parts = {dtype: [part.detach().to(dtype) for part in tensors(trees)] for dtype in (torch.bfloat16, torch.float32)}
    works = [
        threading.Thread(target=lambda own=own: [tree_attention(*own, trees, KERNELS["plain"]) for _ in range(100)])
        for own in (*parts.values(), *parts.values())
    ]
    for work in works:
        work.start()
    for work in works:
        work.join()
    assert precision.fp32_precision == before


def test_only_queries_keys_and_values_are_kept_for_the_backward_pass():
    trees = TREES["one after the other"]
    parts, kept = tensors(trees), []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part.shape), lambda part: part):
        tree_attention(*parts, trees, KERNELS["plain"])
    assert kept == [part.shape for part in parts]


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
    drawn = [tree_attention(*parts[:2], ones, trees, Kernel(0.4, 0.5, softcap)) for _ in range(400)]
    assert not torch.equal(drawn[0], drawn[1])
    mean = torch.stack(drawn).mean(0)  # what is left is scaled up
    assert (mean - 1).abs().max() < 0.3
    assert (drawn[0][0, 0] == 2).logical_or(drawn[0][0, 0] == 0).all()  # the first token sees itself


def on_tokens(trees, width):
    """`[row, position]`: whether a token of a tree stands there."""
    found = torch.zeros(1 + max(tree.row for tree in trees), width, dtype=torch.bool)
    for tree in trees:
        found[tree.row, tree.start : tree.start + tree.trunk + sum(tree.branches)] = True
    return found


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
    torch.testing.assert_close(found[real], dense(query, key, value, trees, Kernel(0.4, window=window))[real])
    assert torch.isfinite(found).all()


def test_the_blocks_of_a_batch_are_found_once_for_policy_and_reference(monkeypatch):
    made = []
    Forest.of.cache_clear()
    real = attention.block_mask
    monkeypatch.setattr(attention, "block_mask", lambda *args: made.append(args[-1]) or real(*args))
    trees = tuple(TREES["one after the other"])
    for _ in range(2):  # policy and reference
        forest = Forest.of(tuple(tree._replace() for tree in trees), 1, 24)
        for window in (None, 3, None, 3):  # layers
            forest.block_mask(window, torch.device("cpu"))
    assert made == [None, 3]
    Forest.of(trees[:1], 1, 24).block_mask(None, torch.device("cpu"))
    assert len(made) == 3


def test_what_was_made_while_evaluating_serves_training():
    trees = (Tree(0, 0, 41, (3, 2), (0, 1)), Tree(0, 46, 150, (7, 1), (2, 3)))
    parts = tensors(trees)
    with torch.inference_mode():
        evaluated = tree_attention(*parts, trees, KERNELS["plain"])
        Forest.of(trees, 1, 206).block_mask(None, torch.device("cpu"))
    assert not Forest.of(trees, 1, 206).block_mask(None, torch.device("cpu")).kv_indices.is_inference()
    trained = tree_attention(*parts, trees, KERNELS["plain"])
    gradients(trained, parts)
    assert torch.equal(trained, evaluated)


def test_the_mask_of_the_last_tokens_of_a_sequence():
    on, off = True, False
    assert causal_mask(2, 4, None, torch.device("cpu")).tolist() == [[on, on, on, off], [on, on, on, on]]
    assert causal_mask(2, 4, 2, torch.device("cpu")).tolist() == [[off, on, on, off], [off, off, on, on]]


def test_what_a_block_of_queries_does_not_see():
    on, off = 0.0, -torch.inf
    assert unseen_in_tree((2,), None).tolist() == [[on, off], [on, on]]
    assert unseen_in_tree((1, 1, 1), None).tolist() == [[on, off, off], [on, on, off], [on, off, on]]
    assert unseen_in_tree((1, 2), 1).tolist() == [[on, off, off], [off, on, off], [off, off, on]]
    assert beyond_window(2, 4, 2).tolist() == [[off, on, on, off], [off, off, on, on]]


def test_masks_are_of_the_cpu_whatever_the_default_device():
    trees = [Tree(0, 0, 3, (2, 5), (0, 1)), Tree(0, 10, 140, (1,), (2,))]
    parts = tensors(trees)
    unseen_in_tree.cache_clear()
    with torch.device("meta"):
        found = tree_attention(*parts, trees, KERNELS["plain"])
    torch.testing.assert_close(found, dense(*parts, trees, KERNELS["plain"]))


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
