"""What has to hold for the losses, whatever they are given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loss_cases import COMPARING, FAMILY, OF_MARGIN, pairs

from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, RobustLoss

logp = st.floats(-400, 0, allow_subnormal=False)
four_logps = st.tuples(logp, logp, logp, logp)
betas = st.floats(0.01, 5)
smoothings = st.floats(0, 0.49)
lengths = st.integers(1, 600)


def of(numbers, nw=1, nl=1):
    """One pair in float64 from four log-probabilities."""
    w, l, rw, rl = numbers  # noqa: E741 - the paper's letters
    return pairs(([w], [l]), ([rw], [rl]), ([nw], [nl]))


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


@settings(max_examples=25)
@given(four_logps, st.floats(-50, 50), st.floats(-50, 50), lengths, lengths)
def test_what_policy_and_reference_share_cancels(numbers, on_chosen, on_rejected, nw, nl):
    """The same constant on policy and reference changes nothing: the prompt's share of a log-probability."""
    w, l, rw, rl = numbers  # noqa: E741 - the paper's letters
    moved = (w + on_chosen, l + on_rejected, rw + on_chosen, rl + on_rejected)
    for name in set(COMPARING) - {"mpo", "wpo"}:  # a likelihood, and weights, do not cancel
        loss = FAMILY[name]
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
