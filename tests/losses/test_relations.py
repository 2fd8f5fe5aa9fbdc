"""How losses stand to one another, and what weights and lengths do to them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loss_cases import FAMILY
from support.loss_cases import pairs as plain_pairs
from support.loss_pairs import pairs

from dpo_lightning.losses import (
    AlphaPOLoss,
    AOTLoss,
    BetaDPOLoss,
    ChiPOLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingeLoss,
    IPOLoss,
    LDDPOLoss,
    LNDPOLoss,
    ODPOLoss,
    ORPOLoss,
    RDPOLoss,
    RobustLoss,
    SFTLoss,
    SimPOLoss,
    TDPO1Loss,
    TDPO2Loss,
    WeightedSum,
    WPOLoss,
)
from dpo_lightning.losses.divergences import AlphaDivergence, ForwardKL, ReverseKL
from dpo_lightning.losses.orpo import log1mexp

betas = st.floats(0.01, 5)
OF_DIVERGENCE = [
    DPOLoss(),
    DPOLoss(0.3, 0.2),
    RobustLoss(),
    HingeLoss(),
    IPOLoss(),
    IPOLoss(normalization="sum"),
    LNDPOLoss(),
    EXOLoss(),
]
weighted = pytest.mark.parametrize("name", [name for name, loss in FAMILY.items() if loss.accepts_weights])


def same(one, other, **tolerance):
    """Losses and rewards of both."""
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine, theirs, **({"rtol": 1e-9, "atol": 1e-9} | tolerance))


@settings(max_examples=50)
@given(pairs(weighted=False), betas)
def test_what_is_dpo_at_one_value_of_an_option(p, beta):
    """Losses and rewards alike."""
    logps = p.tensors()
    dpo = DPOLoss(beta)(logps)
    even = logps._replace(kl=torch.zeros_like(logps.kl))
    for loss in (
        DPOLoss(beta, divergence=AlphaDivergence(1.0)),
        RobustLoss(beta, 0.0),
        LDDPOLoss(beta, 1.0),
        DPOPLoss(beta, 0.0),
        RDPOLoss(beta, 0.0),
        ODPOLoss(beta, 0.0),
        BetaDPOLoss(beta, 0.0),
        TDPO2Loss(beta, 0.0),
        WeightedSum([DPOLoss(beta)], [1.0]),
    ):
        same(loss(logps), dpo)
    for loss in (TDPO1Loss(beta), TDPO2Loss(beta)):
        same(loss(even), dpo)


@given(pairs(most=1), betas)
def test_aot_of_one_pair_is_dpo(p, beta):
    """Which its docstring says: sorting one number is nothing."""
    logps = p.tensors()
    same(AOTLoss(beta)(logps), DPOLoss(beta)(logps))


@settings(max_examples=25)
@given(pairs(), betas)
def test_the_alpha_divergence_has_both_kls_in_it(p, beta):
    logps = p.tensors()
    for loss in OF_DIVERGENCE:
        of = {alpha: replace(loss, divergence=AlphaDivergence(alpha))(logps) for alpha in (0.0, 1.0, 1 + 2e-6)}
        same(of[0.0], replace(loss, divergence=ForwardKL())(logps))
        same(of[1.0], replace(loss, divergence=ReverseKL())(logps))
        same(of[1 + 2e-6], of[1.0], rtol=1e-2, atol=1e-3)


@given(pairs(), betas, st.integers(1, 600))
def test_length_normalised_dpo_of_equal_lengths_is_dpo_of_a_smaller_beta(p, beta, n):
    logps = p.tensors()
    lengths = torch.full_like(logps.chosen_lengths, n)
    logps = logps._replace(chosen_lengths=lengths, rejected_lengths=lengths)
    same(LNDPOLoss(beta)(logps), DPOLoss(beta / n)(logps))


@given(pairs(), betas, st.floats(0, 3))
def test_alphapo_becomes_simpo(p, beta, gamma):
    logps = p.tensors()
    same(AlphaPOLoss(beta, gamma, 0.0)(logps), SimPOLoss(beta, gamma)(logps))
    same(AlphaPOLoss(beta, gamma, 2e-6)(logps), SimPOLoss(beta, gamma)(logps), rtol=1e-3, atol=1e-3)


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_smoothing_towards_one_half_makes_cdpo_symmetric(a, r):
    """At e just below 0.5 either answer may be the chosen one; without it the two differ."""
    there, back = (plain_pairs(([x], [y]), ([0.0], [0.0])) for x, y in ((a, r), (r, a)))
    smooth, dpo = DPOLoss(1.0, math.nextafter(0.5, 0)), DPOLoss(1.0)
    assert float(smooth(there).losses) == pytest.approx(float(smooth(back).losses), rel=1e-9)
    assert float(dpo(there).losses - dpo(back).losses) == pytest.approx(r - a, abs=1e-9)


def test_chipo_is_not_dpo():
    """The link is exp(z) + z in place of z: of h 2 it makes 2 + e - 1/e, up to twice the largest reward."""
    logps = plain_pairs(([1.0], [-1.0]), ([0.0], [0.0]))
    h = 2 + math.e - 1 / math.e
    assert float(ChiPOLoss(0.1)(logps).losses) == pytest.approx(math.log1p(math.exp(-0.1 * h)))
    assert float(ChiPOLoss(1.0)(logps).losses) == pytest.approx(math.log1p(math.exp(-2.0)))
    assert float(DPOLoss(0.1)(logps).losses) == pytest.approx(math.log1p(math.exp(-0.2)))


@weighted
def test_a_weight_of_two_is_the_pair_twice(name):
    """And weights of a common factor, also such that they sum below 1, are no weights at all."""
    loss = FAMILY[name]
    kept = name == "beta-dpo, nearest"  # keeps a share of pairs, not of weights

    @settings(max_examples=15)
    @given(pairs(weighted=False), st.sampled_from([1e-3, 0.1, 3.0]))
    def check(p, factor):
        logps = p.tensors()
        once = logps._replace(weights=torch.full_like(logps.weights, factor))
        same(loss(once), loss(logps))
        first = torch.arange(len(logps.weights)) == 0
        doubled = loss(logps._replace(weights=1.0 + first))
        both = loss(twice(logps, first))
        weights = torch.cat([torch.ones(len(first)), torch.ones(1)]).double()
        if not kept:
            one, other = ((1.0 + first) * doubled.losses).sum(), (weights * both.losses).sum()
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)

    check()


def twice(logps, which):
    """The pairs, and some of them once more."""
    again = logps.select(which)

    def joined(value, more):
        if value is None or len(value) == len(which):
            return value if value is None else torch.cat([value, more])
        chosen, rejected = value.chunk(2)
        return torch.cat([chosen, more.chunk(2)[0], rejected, more.chunk(2)[1]])

    return type(logps)._make(map(joined, logps, again))


@pytest.mark.parametrize("name", FAMILY)
def test_what_only_fills_up_changes_nothing(name):
    """Pairs of weight 0, whatever they hold: the others' losses and rewards are as without them (trap 42)."""
    loss = FAMILY[name]

    @settings(max_examples=15)
    @given(pairs(), st.integers(0, 3))
    def check(p, one):
        logps = p.tensors()
        counts = (logps.weights > 0) if loss.accepts_weights else torch.arange(len(logps.weights)) != one
        logps = logps._replace(weights=logps.weights * counts if loss.accepts_weights else counts.double())
        if counts.any():
            alone = loss(logps.select(counts))
            same([value[counts] for value in loss(logps)], alone)
            assert loss(logps).losses.isfinite().all()

    check()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_no_gradient_flows_through_the_chosen_divergence_of_tdpo_2(alpha):
    """Zeng et al. 2024: `sg(Kw)`; through `Kl` it is `-alpha beta sigmoid(-x)` turned round."""
    kw, kl = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (0.7, 0.4))
    logps = plain_pairs(([-8.0], [-4.0]), ([-9.0], [-3.0]), ([8], [2]))._replace(kl=torch.cat([kw, kl]))
    TDPO2Loss(0.5, alpha)(logps).losses.sum().backward()
    x = 0.5 * (2 - alpha * (0.4 - 0.7))
    assert float(kw.grad) == 0
    assert float(kl.grad) == pytest.approx(0.5 * alpha / (1 + math.exp(x)), rel=1e-12)


def test_the_weights_of_wpo_have_no_gradient():
    """The gradient is that of the inner loss times both weights."""
    gradients = []
    for loss in (DPOLoss(0.3), WPOLoss(DPOLoss(0.3))):
        leaf = torch.tensor([-8.0], dtype=torch.float64, requires_grad=True)
        loss(plain_pairs((leaf, [-4.0]), ([-9.0], [-3.0]), ([8], [2]))).losses.sum().backward()
        gradients.append(float(leaf.grad))
    weight = math.exp((-1 + 0.25) + (-2 + 0.25))
    assert gradients[1] == pytest.approx(weight * gradients[0], rel=1e-9)


def test_a_mixture_normalises_each_part_by_itself():
    """swift divided the other losses of a mix by the tokens that IPO counts (trap 36)."""
    logps = plain_pairs(([-8.0, -6.0], [-4.0, -7.0]), ([-9.0, -5.0], [-4.5, -9.0]), ([8, 3], [2, 4]))
    parts = [DPOLoss(0.1), IPOLoss(0.1), IPOLoss(0.1, "sum"), SFTLoss()]
    total = WeightedSum(parts, [1.0, 0.5, 0.25, 2.0])(logps).losses
    h = np.array([1 - 0.5, -1 - 2.0])
    mean = np.array([1 / 8 - 0.5 / 2, -1 / 3 - 2 / 4])
    nll = np.array([8.0, 6.0]) * 2 / 11
    expected = np.logaddexp(0, -0.1 * h) + 0.5 * (mean - 5) ** 2 + 0.25 * (h - 5) ** 2 + 2 * nll
    np.testing.assert_allclose(total, expected, rtol=1e-12)


def test_a_part_that_is_switched_off_asks_for_nothing():
    """Neither statistics, nor a reference, nor state, nor that pairs count the same."""
    off = WeightedSum([SFTLoss(), WPOLoss(), LDDPOLoss(), AOTLoss(), BetaDPOLoss()], [1.0, 0.0, 0.0, 0.0, 0.0])
    assert (off.statistics, off.reference_free, off.state, off.accepts_weights) == (frozenset(), True, None, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odds_are_right_near_certainty(dtype):
    """A mean of -1e-9: naively log(1 - exp(m)) is minus infinity in float32 (trap 41)."""
    m = torch.tensor([-1e-9, -1e-3, -0.5, -0.6931, -0.6932, -5.0, -80.0, 0.0], dtype=dtype, requires_grad=True)
    values = log1mexp(m)
    values.sum().backward()
    exact = np.log(-np.expm1(m.detach().double().numpy()[:7]))
    assert values.tolist()[:7] == pytest.approx(exact.tolist(), rel=1e-6)
    assert float(values[0]) == pytest.approx(-20.7233, abs=1e-4)
    assert values.isfinite().all()
    assert m.grad.isfinite().all()
    assert m.grad.tolist()[:3] == pytest.approx([-1e9, -999.5, -1 / math.expm1(0.5)], rel=1e-4)
    leaf = torch.tensor([-1e-9], dtype=dtype, requires_grad=True)
    loss = ORPOLoss()(plain_pairs((leaf, [-2.0]), ([0.0], [0.0]), dtype=dtype)).losses
    loss.sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("mean", [-1e-5, -3e-7, -1e-9, -1e-20, -1e-30])
def test_orpo_of_an_answer_that_is_nearly_certain(mean, dtype, tolerance):
    """The odds of exp(m) are exp(m) / (1 - exp(m)), near -1/m; here the sure answer is the one that is rejected."""
    chosen = torch.tensor([-2.0], dtype=dtype)
    rejected = torch.tensor([mean], dtype=dtype, requires_grad=True)
    loss = ORPOLoss(0.3)(plain_pairs((chosen, rejected), ([0.0], [0.0]), dtype=dtype)).losses
    odds = (-2 - math.log(-math.expm1(-2))) - (mean - math.log(-math.expm1(mean)))
    assert loss.item() == pytest.approx(2 + 0.3 * math.log1p(math.exp(-odds)), rel=tolerance)
    loss.sum().backward()
    slope = 1 / -math.expm1(mean)  # of the log odds by m: 1 / (1 - exp(m))
    assert rejected.grad.item() == pytest.approx(0.3 * slope / (1 + math.exp(odds)), rel=10 * tolerance)
