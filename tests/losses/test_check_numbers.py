"""The losses against published numbers, at their start, and far away from it."""

import math

import pytest
import torch
from check_rows import make_check_rows
from make_losses import make_instance
from support.loss_cases import (
    CHECKS,
    COMPARING,
    FAMILY,
    LENGTHS,
    POLICY,
    REFERENCE,
    STARTS,
    TORCHTUNE,
    WITH_LENGTHS,
    pairs,
    pairs_of,
)

from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, PairwiseLoss

SIX = {"abs": 1e-6, "rel": 0}


@pytest.mark.parametrize("kind", CHECKS, ids=lambda kind: kind.__name__)
def test_the_check_numbers_of_the_docstrings(kind):
    """A line `Check:` in every loss: its values at default options for the rows that docs/losses.md shows."""
    losses = make_instance(kind)(make_check_rows(kind)).losses
    assert losses.tolist() == pytest.approx(CHECKS[kind], **SIX)


@pytest.mark.parametrize(
    ("name", "each", "mean"),
    [
        ("dpo", [0.693147, 0.313262, 0.126928], 0.377779),
        ("cdpo", [0.693147, 0.413262, 0.326928], 0.477779),
        ("robust", [0.693147, 0.188262, -0.123072], 0.252779),
        ("hinge", [1, 0, 0], 0.333333),
        ("ipo mean", [25, 8.820900, 3.033403], 12.284768),
        ("ipo sum", [25, 25, 225], 91.666667),
        ("ln-dpo", [0.693147, 0.596789, 0.411832], 0.567256),
        ("exo", [0.510826, 0.114082, 0.001942], 0.208950),
        ("nca", [1.386294, 1.195220, 1.122047], 1.234520),
        ("bco", [1.386294, 1.004121, 0.855775], 1.082063),
        ("sppo", [50, 48.02, 287.62], 128.546667),
        ("aot", [0.693147, 0.326928, 0.413262], 0.477779),
        ("aot unpaired", [0.414961, 0.689160, 0.326928], 0.477016),  # at the pairs of the sorted chosen answers
        ("apo zero", [1, 0.768412, 0.632557], 0.800323),
        ("apo down", [1, 0.771441, 0.596718], 0.789386),
        ("discopop", [0.846574, 0.367879, 0.135335], 0.449929),
        ("sft, tokens", [0.214286, 4.285714, 0.428571], 1.642857),
        ("sft, sequences", [0.5, 5, 0.25], 1.916667),
        ("sft, sums", [0.5, 10, 1], 3.833333),
        ("mpo", None, 2.161493),
        ("dpo, jensen-shannon", [0.693147, 0.333831, 0.131056], 0.386012),
        ("dpo, forward kl", [0.693147, 0, 0], 0.231049),
        ("dpo, alpha 1/2", [0.693147, 0, 0], 0.231049),
        ("dpo, alpha 1/4", [0.693147, 0, 0], 0.231049),
        ("wpo", [0.659342, 9e-6, 1.49e-4], 0.219833),
        ("ld-dpo 1/2", [0.693147, 0.402192, 0.125594], None),
        ("ld-dpo 0", [0.693147, 0.510612, 0.124272], None),
        ("simpo", [1.620417, 0.201413, 2e-6], None),
        ("cpo", [0.713347, 0.126928, 0.126928], None),
        ("orpo", [0.5 + 0.261394, 5 + 0.031211, 0.25 + 2.6e-5], None),
        ("alphapo", [1.672533, 0.000593, 0], None),
        ("dpop", [0.693147, 0.313262, 0.192476], None),
        ("r-dpo", [0.698160, 0.321419, 0.125741], None),
        ("odpo", [1.313262, 0.693147, 0.313262], None),
        ("odpo, log", [0.693147, 0.313262, 0.126928], None),  # log 1 is no offset
    ],
)
def test_torchtunes_pairs_with_lengths(name, each, mean):
    """torchtune's inputs, beta 0.1, e 0.1, 1/2/4 and 2/5/3 tokens; for its fifteen losses, TRL 1.16's code as well."""
    losses = FAMILY[name](WITH_LENGTHS).losses
    if each is not None:
        assert losses.tolist() == pytest.approx(each, **SIX)
    if mean is not None:
        assert float(losses.mean()) == pytest.approx(mean, **SIX)


@pytest.mark.parametrize(
    ("loss", "each"),
    [
        (DPOLoss(beta=0.1), [0.693147, 0.313262, 0.126928]),
        (HingeLoss(beta=0.1), [1, 0, 0]),
        (IPOLoss(beta=0.1, normalization="sum"), [25, 25, 225]),
        (IPOLoss(beta=0.1, normalization="mean"), [25, 25, 225]),
    ],
)
def test_torchtunes_own_expectations(loss, each):
    """torchtune's unit tests of DPO, RSO and (2024-09) IPO; with one token, mean and sum agree."""
    assert loss(TORCHTUNE).losses.tolist() == pytest.approx(each, **SIX)


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [
        (DPOLoss(), 0.437488, -0.035434),
        (HingeLoss(), 0.4, -0.1),
        (IPOLoss(), 1.0, 2.0),
        (IPOLoss(normalization="sum"), 1.0, 2.0),
    ],
)
def test_ms_swifts_case(loss, value, slope):
    """ms-swift #10167: beta 0.1, h 6, one token; its Megatron path trained them all as sigmoid."""
    h = torch.tensor([6.0], dtype=torch.float64, requires_grad=True)
    losses = loss(pairs_of(h)).losses
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([value], **SIX)
    assert h.grad.tolist() == pytest.approx([slope], **SIX)


def test_losses_are_all_different():
    """swift and unsloth trained another loss than the configured one."""
    logps = pairs(POLICY, REFERENCE, LENGTHS, kl=range(6), margins=[1, 2, 3])
    numbers = {name: tuple(loss(logps).losses.tolist()) for name, loss in FAMILY.items()}
    assert len(set(numbers.values())) == len(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("size", [1e3, -1e3])
@pytest.mark.parametrize("moved", range(4))
def test_far_log_ratios_stay_finite(name, size, moved):
    """Each of the four log-probabilities 1000 nats off, in float32: value and gradients are numbers."""
    leaves = [torch.zeros(1, requires_grad=True) for _ in range(4)]
    values = [leaf + (size if i == moved else 0) for i, leaf in enumerate(leaves)]
    output = FAMILY[name](pairs(values[:2], values[2:], ([1.0], [3.0]), torch.float32))
    output.losses.sum().backward()
    assert all(value.isfinite().all() for value in output)
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("name", FAMILY)
def test_trls_old_overflow_case(name):
    """TRL's former check: policy (410, .1)/(810.5, .2), reference (-610, -.1)/(110.6, .5)."""
    logps = pairs(([410, 0.1], [810.5, 0.2]), ([-610, -0.1], [110.6, 0.5]), dtype=torch.float32)
    assert FAMILY[name](logps).losses.isfinite().all()


@pytest.mark.parametrize("name", FAMILY)
def test_an_answer_without_scored_tokens_is_no_nan(name):
    """0 tokens have log-probability 0 under both models; IPO's mean of them is 0 and not 0/0."""
    leaf = torch.zeros(2, requires_grad=True)
    zero = torch.zeros(2)
    output = FAMILY[name](pairs((leaf, leaf * 1), (zero, zero), (zero, [0.0, 3.0]), torch.float32))
    output.losses.sum().backward()
    assert all(value.isfinite().all() for value in output)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in CHECKS if issubclass(kind, PairwiseLoss)], ids=lambda k: k.__name__)
def test_the_first_check_row_is_at_the_start(kind):
    """There the loss has its first check number, and rewards are exactly 0 unless the loss has no reference."""
    loss, rows = make_instance(kind), make_check_rows(kind)
    losses, *rewards = loss(rows.at_start())
    if loss.accepts_weights:  # otherwise a row's loss depends on the others
        assert losses[0].item() == pytest.approx(CHECKS[kind][0], **SIX)
    assert loss.reference_free or not any(values.any() for values in rewards)


@pytest.mark.parametrize("name", COMPARING)
def test_starting_values(name):
    """Where policy and reference agree: the loss's own value, and rewards of exactly 0, whatever the lengths."""
    output = FAMILY[name](WITH_LENGTHS.at_start())
    expected = STARTS.get(name, math.log(2))
    if name == "r-dpo":  # which knows the lengths as well
        expected = [math.log1p(math.exp(-0.01 * more)) for more in (-1, -3, 1)]
    elif name == "odpo":  # which begins an offset of 1 below
        expected = math.log1p(math.exp(1))
    elif name == "mpo":
        expected = [0.8 * math.log(2) + 0.4 * math.log(2) + nll for nll in (0.214286, 4.285714, 0.428571)]
    elif name == "wpo":
        expected = [math.log(2) * weight for weight in (0.951229, 0.000028, 0.001171)]
    elif name == "beta-dpo, nearest":  # all are as near: the mean is that of the first two
        expected = [1.5 * math.log(2), 1.5 * math.log(2), 0]
    assert output.losses.tolist() == pytest.approx(
        [expected] * 3 if isinstance(expected, float) else expected, abs=1e-6
    )
    assert not output.chosen_rewards.any()
    assert not output.rejected_rewards.any()


def test_the_first_gradient_of_dpo_is_half_of_beta():
    """At the start d loss / d chosen is -beta / 2."""
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    DPOLoss(0.3)(pairs_of(h)).losses.sum().backward()
    assert float(h.grad) == pytest.approx(-0.15, rel=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_rewards_carry_no_gradient(name):
    h = torch.ones(2, requires_grad=True)
    output = FAMILY[name](pairs_of(h, torch.float32))
    assert output.losses.requires_grad
    assert not output.chosen_rewards.requires_grad
    assert not output.rejected_rewards.requires_grad
