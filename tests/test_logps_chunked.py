"""Logits a chunk at a time: the numbers of logits that are made at once, in memory that does not grow."""

import pytest
import torch
from support.model_families import PAIRS, make
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpo_lightning import logps
from dpo_lightning.data.collate import Padded
from dpo_lightning.logps import ChunkedLogps, logps_of, token_logps
from dpo_lightning.models.lm_head import SplitHead, find_head


def head_of(bias=True, scale=1.0, softcap=None, frozen=False, dim=12, vocabulary=31):
    """An output layer of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = nn.Linear(dim, vocabulary, bias=bias).requires_grad_(not frozen)
    return SplitHead(nn.Identity(), output, vocabulary, scale, softcap)


def tokens(count, dim=12, vocabulary=31, dtype=torch.float32):
    """Hidden states and targets."""
    draw = torch.Generator().manual_seed(1)
    hidden = (torch.randn(count, dim, generator=draw) * 3).to(dtype).requires_grad_()
    return hidden, torch.randint(vocabulary, (count,), generator=draw)


def both_ways(head, hidden, targets, rows):
    """Values, and gradients of all that has one, of logits in chunks of `rows` and of logits at once."""
    found = []
    for whole in (False, True):
        if whole:
            values = logps_of(head.logits(hidden), targets)
        else:
            values = ChunkedLogps.apply(hidden, targets, head.logits, rows, *head.weights())
        loss = (values * torch.linspace(-1, 1, len(targets))).sum()
        found.append((values.detach(), *torch.autograd.grad(loss, [hidden, *head.weights()])))
    return found


HEADS = {
    "plain": {"bias": False},
    "with a bias": {},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 2.0},
    "scaled and capped": {"scale": 3.0, "softcap": 2.0},
    "frozen": {"frozen": True},
    "frozen and capped": {"frozen": True, "softcap": 2.0},
}


@pytest.mark.parametrize("cached", [logps.CACHED, 3 * 31, 1])
@pytest.mark.parametrize("rows", [1, 2, 7, 20, 1000])
@pytest.mark.parametrize("kind", HEADS)
def test_chunks_of_any_size_are_the_whole(kind, rows, cached, monkeypatch):
    monkeypatch.setattr(logps, "CACHED", cached)
    head = head_of(**HEADS[kind])
    assert len(head.weights()) == (0 if "frozen" in kind else 1 if kind == "plain" else 2)
    for one, other in zip(*both_ways(head, *tokens(20), rows), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_no_token_at_all(kind):
    head = head_of(**HEADS[kind])
    chunked, whole = both_ways(head, *tokens(0), 4)
    assert chunked[0].dtype == torch.float32
    for one, other in zip(chunked, whole, strict=True):
        assert one.shape == other.shape
        assert not one.any()


@pytest.mark.parametrize("kind", HEADS)
def test_values_are_float32_under_autocast_and_gradients_follow(kind):
    head = head_of(**HEADS[kind])
    exact = both_ways(head, *tokens(20), 6)[1]
    with torch.autocast("cpu", torch.bfloat16):
        chunked, whole = both_ways(head, *tokens(20), 6)
    assert chunked[0].dtype == torch.float32
    for mixed, one, right in zip(chunked, whole, exact, strict=True):
        assert mixed.dtype == one.dtype == torch.float32
        scale = float(right.abs().max())
        torch.testing.assert_close(mixed, one, rtol=0, atol=0.01 * scale)
        torch.testing.assert_close(mixed, right, rtol=0, atol=0.05 * scale)
    assert not torch.equal(chunked[0], exact[0])  # autocast was on


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gets_gradients_of_its_own_kind(dtype):
    head = head_of()
    head.output.to(dtype)
    chunked, whole = both_ways(head, *tokens(20, dtype=dtype), 6)
    assert [part.dtype for part in chunked] == [torch.float32, dtype, dtype, dtype]
    for one, other in zip(chunked, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * float(other.abs().max()))


def test_gradients_of_half_precision_weights_are_summed_in_float32():
    """A sum of thousands of chunks in bf16 stops growing."""
    head = head_of(bias=False)
    head.output.to(torch.bfloat16)
    hidden, targets = tokens(1, dtype=torch.bfloat16)
    hidden, targets = hidden.detach().expand(2000, -1).contiguous().requires_grad_(), targets.expand(2000)
    found = {}
    for rows in (1, 2000):
        values = ChunkedLogps.apply(hidden, targets, head.logits, rows, *head.weights())
        (found[rows],) = torch.autograd.grad(values.sum(), head.weights())
    torch.testing.assert_close(found[1], found[2000], rtol=0.02, atol=0.02 * float(found[2000].abs().max()))


def test_a_backward_pass_under_no_autocast_computes_as_the_forward_pass_did():
    head, (hidden, targets) = head_of(), tokens(20)
    with torch.autocast("cpu", torch.bfloat16):
        values = ChunkedLogps.apply(hidden, targets, head.logits, 6, *head.weights())
        (inside,) = torch.autograd.grad(values.sum(), hidden, retain_graph=True)
    (outside,) = torch.autograd.grad(values.sum(), hidden)
    assert torch.equal(inside, outside)


def test_gradients_are_those_of_finite_differences():
    head = head_of(scale=0.5, softcap=3.0)
    head.output.double()
    hidden, targets = tokens(5, dtype=torch.float64)

    def total(hidden, *weights):
        return ChunkedLogps.apply(hidden, targets, head.logits, 2, *weights)

    # Values are float32 whatever comes in: a wide step, and what it leaves.
    assert torch.autograd.gradcheck(total, (hidden, *head.weights()), eps=1e-2, atol=1e-2, rtol=1e-2)


# Memory


class Largest(TorchDispatchMode):
    """Notes how many values the largest tensor that is made has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.most = max(self.most, *sizes, 0)
        return out


def largest(model, copies, in_two_parts=True):
    """The largest tensor of a step over some copies of a batch of pairs."""
    batch = Padded().collate(PAIRS * copies, range(len(PAIRS) * copies))
    head = find_head(model) if in_two_parts else None
    with Largest() as seen:
        token_logps(model, batch, head).values.sum().backward()
    return seen.most


def test_logits_do_not_grow_with_the_batch(monkeypatch):
    model = make("llama", vocab_size=2000, tie_word_embeddings=False)
    weights = model.lm_head.weight.numel()
    monkeypatch.setattr(logps, "CHUNK", 2000 * 20)
    assert {largest(model, copies) for copies in (1, 2, 8)} == {weights}
    monkeypatch.setattr(logps, "CHUNK", 2000 * 50)
    assert {largest(model, copies) for copies in (2, 4, 8)} == {2000 * 50}
    assert largest(model, 8, in_two_parts=False) > 8 * 2000 * 20  # what the chunks are there to avoid


def test_dropout_in_the_output_layer_is_not_drawn_twice():
    """Made again in the backward pass, logits would be another sample than those that the loss was of."""
    model = make("llama")
    model.lm_head = nn.Sequential(nn.Dropout(0.5), model.lm_head)
    head, pairs = find_head(model), Padded().collate(PAIRS, range(len(PAIRS)))
    gradients = []
    for parts in (head, None):
        torch.manual_seed(0)
        values = token_logps(model.train(), pairs, parts).values
        gradients.append(torch.autograd.grad(values.sum(), [model.lm_head[1].weight])[0])
    assert torch.equal(*gradients)
    assert head.is_repeatable() is False
    model.lm_head.eval()
    assert head.is_repeatable() is True
