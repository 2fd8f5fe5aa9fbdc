"""The losses against published numbers, formulas written a second time, and what has to hold."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, RobustLoss
from dpo_lightning.types import PairLogps

FAMILY = {
    "dpo": DPOLoss(),
    "cdpo": DPOLoss(label_smoothing=0.1),
    "robust": RobustLoss(label_smoothing=0.1),
    "hinge": HingeLoss(),
    "ipo mean": IPOLoss(),
    "ipo sum": IPOLoss(normalization="sum"),
}
OF_MARGIN = ("dpo", "cdpo", "robust", "hinge", "ipo sum")
SIX = {"abs": 1e-6, "rel": 0}


def pairs(policy, reference, lengths=None, dtype=torch.float64):
    """Pairs from `(chosen, rejected)` rows of numbers; a token each where no lengths are given."""
    rows = [*policy, *reference, *(lengths or [[1] * len(policy[0])] * 2)]
    return PairLogps(*(torch.tensor(row, dtype=dtype) for row in rows))


def pairs_of(h, dtype=torch.float64):
    """Pairs of a token each whose difference of log-ratios is `h`, a list or a leaf tensor."""
    h = torch.as_tensor(h, dtype=dtype)
    return PairLogps(h, *[torch.zeros_like(h)] * 3, *[torch.ones_like(h)] * 2)


POLICY = ([-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0])
REFERENCE = ([-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1])
TORCHTUNE = pairs(POLICY, REFERENCE)
WITH_LENGTHS = pairs(POLICY, REFERENCE, ([1, 2, 4], [2, 5, 3]))


@pytest.mark.parametrize(
    ("name", "each", "mean"),
    [
        ("dpo", [0.693147, 0.313262, 0.126928], 0.377779),
        ("cdpo", [0.693147, 0.413262, 0.326928], 0.477779),
        ("robust", [0.693147, 0.188262, -0.123072], 0.252779),
        ("hinge", [1, 0, 0], 0.333333),
        ("ipo mean", [25, 8.820900, 3.033403], 12.284768),
        ("ipo sum", [25, 25, 225], 91.666667),
    ],
)
def test_torchtunes_pairs_with_lengths(name, each, mean):
    """torchtune's inputs, beta 0.1, e 0.1, 1/2/4 and 2/5/3 tokens; TRL 1.16's code gives these."""
    losses = FAMILY[name](WITH_LENGTHS).losses
    assert losses.tolist() == pytest.approx(each, **SIX)
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
    numbers = {name: tuple(loss(WITH_LENGTHS).losses.tolist()) for name, loss in FAMILY.items()}
    assert len(set(numbers.values())) == len(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("size", [1e3, -1e3])
@pytest.mark.parametrize("moved", range(4))
def test_far_log_ratios_stay_finite(name, size, moved):
    """Each of the four log-probabilities 1000 nats off, in float32: value and gradients are numbers."""
    leaves = [torch.zeros(1, requires_grad=True) for _ in range(4)]
    values = [leaf + (size if i == moved else 0) for i, leaf in enumerate(leaves)]
    output = FAMILY[name](PairLogps(*values, torch.ones(1), torch.full((1,), 3.0)))
    output.losses.sum().backward()
    assert all(value.isfinite().all() for value in output)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


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
    output = FAMILY[name](PairLogps(leaf, leaf * 1, zero, zero, zero, torch.tensor([0.0, 3.0])))
    output.losses.sum().backward()
    assert all(value.isfinite().all() for value in output)
    assert leaf.grad.isfinite().all()


logp = st.floats(-400, 0, allow_subnormal=False)
four_logps = st.tuples(logp, logp, logp, logp)
betas = st.floats(0.01, 5)
smoothings = st.floats(0, 0.49)
lengths = st.integers(1, 600)


def of(numbers, nw=1, nl=1):
    """One pair in float64 from four log-probabilities."""
    w, l, rw, rl = numbers  # noqa: E741 - the paper's letters
    return pairs(([w], [l]), ([rw], [rl]), ([nw], [nl]))


def minus_ls(x):
    return np.logaddexp(0.0, -x)


@given(four_logps, betas, smoothings, lengths, lengths)
def test_formulas_written_a_second_time(numbers, beta, e, nw, nl):
    """The formulas of the papers in float64 numpy, at random inputs."""
    w, l, rw, rl = numbers  # noqa: E741 - the paper's letters
    h, logps = (w - rw) - (l - rl), of(numbers, nw, nl)
    expected = {
        DPOLoss(beta): minus_ls(beta * h),
        DPOLoss(beta, e): (1 - e) * minus_ls(beta * h) + e * minus_ls(-beta * h),
        RobustLoss(beta, e): ((1 - e) * minus_ls(beta * h) - e * minus_ls(-beta * h)) / (1 - 2 * e),
        HingeLoss(beta): max(0.0, 1 - beta * h),
        IPOLoss(beta, "mean"): ((w - rw) / nw - (l - rl) / nl - 0.5 / beta) ** 2,
        IPOLoss(beta, "sum"): (h - 0.5 / beta) ** 2,
    }
    for loss, value in expected.items():
        assert float(loss(logps).losses) == pytest.approx(value, rel=1e-9, abs=1e-9), loss


@given(four_logps, betas, lengths, lengths)
def test_rewards(numbers, beta, nw, nl):
    """`beta * log-ratio`; for IPO by the mean, the mean log-ratio: what its loss compares."""
    logps = of(numbers, nw, nl)
    a, r = numbers[0] - numbers[2], numbers[1] - numbers[3]
    for loss in (DPOLoss(beta), RobustLoss(beta), HingeLoss(beta), IPOLoss(beta, "sum")):
        assert [float(x) for x in loss(logps)[1:]] == pytest.approx([beta * a, beta * r])
    assert [float(x) for x in IPOLoss(beta)(logps)[1:]] == pytest.approx([beta * a / nw, beta * r / nl])


@given(four_logps, betas, smoothings)
def test_swapping_the_answers(numbers, beta, e):
    """L(h) - L(-h) is -beta h for DPO, (1-2e) of it for cDPO; robust averages to DPO over flips."""
    there, back = of(numbers), of((numbers[1], numbers[0], numbers[3], numbers[2]))
    h = float(there.margins)
    dpo, cdpo, robust = DPOLoss(beta), DPOLoss(beta, e), RobustLoss(beta, e)

    def swapped(loss):
        return float(loss(there).losses - loss(back).losses)

    assert swapped(dpo) == pytest.approx(-beta * h, abs=1e-9)
    assert swapped(cdpo) == pytest.approx(-(1 - 2 * e) * beta * h, abs=1e-9)
    debiased = (1 - e) * robust(there).losses + e * robust(back).losses
    assert float(debiased) == pytest.approx(float(dpo(there).losses), rel=1e-9, abs=1e-9)


@given(four_logps, st.floats(-50, 50), st.floats(-50, 50), lengths, lengths)
def test_what_policy_and_reference_share_cancels(numbers, on_chosen, on_rejected, nw, nl):
    """The same constant on policy and reference changes nothing: the prompt's share of a log-probability."""
    w, l, rw, rl = numbers  # noqa: E741 - the paper's letters
    moved = (w + on_chosen, l + on_rejected, rw + on_chosen, rl + on_rejected)
    for loss in FAMILY.values():
        before, after = loss(of(numbers, nw, nl)), loss(of(moved, nw, nl))
        for one, other in zip(before, after, strict=True):
            assert float(one) == pytest.approx(float(other), rel=1e-9, abs=1e-9)


@given(four_logps, st.sampled_from(OF_MARGIN))
def test_what_chosen_gains_rejected_loses(numbers, name):
    """d loss / d chosen is -(d loss / d rejected) for every loss of the difference alone."""
    chosen, rejected = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in numbers[:2])
    FAMILY[name](of(numbers)._replace(policy_chosen=chosen, policy_rejected=rejected)).losses.sum().backward()
    assert float(chosen.grad) == -float(rejected.grad)


@given(four_logps, lengths)
def test_ipo_by_the_mean_of_equal_lengths_is_ipo_of_the_mean(numbers, n):
    """With n tokens on both sides, the mean form is the summed form of h / n."""
    mean, total = IPOLoss(normalization="mean"), IPOLoss(normalization="sum")
    scaled = of([x / n for x in numbers])
    expected = float(total(scaled).losses)
    assert float(mean(of(numbers, n, n)).losses) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        (DPOLoss(0.3), math.log(2)),
        (DPOLoss(0.3, 0.2), math.log(2)),
        (RobustLoss(0.3, 0.2), math.log(2)),
        (HingeLoss(0.3), 1.0),
        (IPOLoss(0.3, "mean"), 1 / (4 * 0.3**2)),
        (IPOLoss(0.3, "sum"), 1 / (4 * 0.3**2)),
    ],
)
def test_starting_values(loss, start):
    """Where policy and reference agree: the loss's own value, rewards of exactly 0, whatever the lengths."""
    logps = WITH_LENGTHS._replace(
        reference_chosen=WITH_LENGTHS.policy_chosen, reference_rejected=WITH_LENGTHS.policy_rejected
    )
    output = loss(logps)
    assert output.losses.tolist() == pytest.approx([start] * 3, rel=1e-12)
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
