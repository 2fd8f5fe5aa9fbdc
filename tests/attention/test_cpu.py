"""Attention on a CPU: as exact as torch's own kernel in half precision, and nothing around it is left changed."""

import threading

import pytest
import torch
from support.trees import KERNELS, TREES, dense, gradients, tensors

from dpo_lightning.attention.cpu import additive_mask, multiply_as, tree_mask
from dpo_lightning.attention.masks import causal_mask
from dpo_lightning.attention.tree import attend_by_pieces, tree_attention
from dpo_lightning.batches import Tree


@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_is_no_worse_than_torchs_own_kernel(mixed):
    """Scores and sums are kept in float32: rounded ones would be four times as far off."""
    trees = [Tree(0, 0, 90, (70, 40), (0, 1)), Tree(0, 200, 150, (5, 60), (2, 3))]
    half = [(2 * part).detach().bfloat16().requires_grad_() for part in tensors(trees)]
    exact = [part.detach().double().requires_grad_() for part in half]
    expected = dense(*exact, trees, KERNELS["plain"])
    expected = [expected, *gradients(expected, exact)]
    errors = {}
    for name, way in {"cpu": tree_attention, "pieces": attend_by_pieces}.items():
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
    with pytest.raises(RuntimeError, match="size"), multiply_as(torch.bfloat16):
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


def test_what_a_block_of_queries_does_not_see():
    on, off = 0.0, -torch.inf
    assert tree_mask((2,), None).tolist() == [[on, off], [on, on]]
    assert tree_mask((1, 1, 1), None).tolist() == [[on, off, off], [on, on, off], [on, off, on]]
    assert tree_mask((1, 2), 1).tolist() == [[on, off, off], [off, on, off], [off, off, on]]
    assert additive_mask(causal_mask(2, 4, 2, torch.device("cpu"))).tolist() == [[off, on, on, off], [off, off, on, on]]


def test_masks_are_of_the_cpu_whatever_the_default_device():
    trees = [Tree(0, 0, 3, (2, 5), (0, 1)), Tree(0, 10, 140, (1,), (2,))]
    parts = tensors(trees)
    tree_mask.cache_clear()
    with torch.device("meta"):
        found = tree_attention(*parts, trees, KERNELS["plain"])
    torch.testing.assert_close(found, dense(*parts, trees, KERNELS["plain"]))
