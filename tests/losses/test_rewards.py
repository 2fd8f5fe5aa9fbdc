"""Rewards of the losses: what each compares, by which accuracies are counted."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from support.loss_cases import FAMILY, mpo
from support.loss_cases import pairs as plain_pairs
from support.loss_formulas import desensitised
from support.loss_pairs import pairs

from dpo_lightning.losses import (
    AlphaPOLoss,
    ChiPOLoss,
    CPOLoss,
    DPOLoss,
    DPOPLoss,
    HingeLoss,
    IPOLoss,
    LDDPOLoss,
    LNDPOLoss,
    ORPOLoss,
    SFTLoss,
    SimPOLoss,
    TDPO1Loss,
    TDPO2Loss,
    WeightedSum,
    WPOLoss,
)

OF_LOG_RATIOS = (
    "nca",
    "bco",
    "sppo",
    "aot",
    "aot unpaired",
    "apo zero",
    "apo down",
    "r-dpo",
    "odpo",
    "beta-dpo",
    "cal-dpo",
)


@settings(max_examples=50)
@given(pairs())
def test_rewards_are_what_a_loss_compares(p):
    """By them accuracies are counted: means for SimPO, IPO and LN-DPO, sums for DPO, corrected ones for TDPO."""
    logps = p.tensors()
    kw, kl = (np.array([tokens.sum() for tokens in side.kl]) for side in p[:2])
    chi = [np.exp(np.minimum(ratios, 20)) - 1 + ratios for ratios in (p.a, p.r)]
    expected = {
        DPOLoss(0.3): (p.a, p.r),
        IPOLoss(0.3): (p.a / p.nw, p.r / p.nl),
        LNDPOLoss(0.3): (p.a / p.nw, p.r / p.nl),
        SimPOLoss(0.3): (p.mw, p.ml),
        ORPOLoss(0.3): (p.mw, p.ml),
        AlphaPOLoss(0.3, 1.0, 0.5): ((1 - np.exp(-0.5 * p.mw)) / 0.5, (1 - np.exp(-0.5 * p.ml)) / 0.5),
        CPOLoss(0.3, 2.0): (p.w, p.l),
        TDPO1Loss(0.3): (p.a + kw, p.r + kl),
        TDPO2Loss(0.3, 0.2): (p.a + 0.2 * kw, p.r + 0.2 * kl),
        DPOPLoss(0.3, 4.0): (p.a - 4 * np.maximum(0, -p.a), p.r),
        ChiPOLoss(0.3): chi,
        LDDPOLoss(0.3, 0.2): desensitised(p, 0.2),
        WPOLoss(IPOLoss(0.3)): (p.a / p.nw, p.r / p.nl),
    }
    for name in OF_LOG_RATIOS:
        expected[replace(FAMILY[name], beta=0.3)] = (p.a, p.r)
    for loss, scores in expected.items():
        for mine, score in zip(loss(logps)[1:], scores, strict=True):
            np.testing.assert_allclose(mine, 0.3 * score, rtol=1e-9, atol=1e-9)
    for mine, score in zip(SFTLoss()(logps)[1:], (p.mw, p.ml), strict=True):  # which has no beta
        np.testing.assert_allclose(mine, score, rtol=1e-9, atol=1e-9)


def test_where_sum_and_mean_disagree_the_loss_decides():
    """Chosen has 8 tokens of -1, rejected 2 of -2: likelier per token, less likely as a whole (trap 46)."""
    logps = plain_pairs(([-8.0], [-4.0]), ([0.0], [0.0]), ([8], [2]))

    def wins(loss):
        return bool(loss(logps).chosen_rewards > loss(logps).rejected_rewards)

    assert [wins(loss) for loss in (SimPOLoss(), IPOLoss(), LNDPOLoss(), ORPOLoss(), AlphaPOLoss())] == [True] * 5
    assert [wins(loss) for loss in (DPOLoss(), IPOLoss(normalization="sum"), HingeLoss())] == [False] * 3


def test_rewards_of_a_mixture_are_not_multiplied():
    """swift multiplies them by the sum of weights, TRL's `sft` once zeroed them; what is switched off does not lead."""
    logps = plain_pairs(([-8.0], [-4.0]), ([-9.0], [-4.5]), ([8], [2]))
    alone = DPOLoss(0.1)(logps)
    for loss in (
        mpo(),
        WeightedSum([SFTLoss(), DPOLoss(0.1)], [5.0, 0.1]),
        WeightedSum([IPOLoss(), DPOLoss(0.1)], [0.0, 2.0]),
    ):
        assert all(mine.equal(own) for mine, own in zip(loss(logps)[1:], alone[1:], strict=True))
