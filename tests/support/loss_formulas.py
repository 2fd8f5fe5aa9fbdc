"""The losses' formulas a second time, in float64 numpy, from the papers and not from the code."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from dpo_lightning.losses import (
    AlphaPOLoss,
    AOTLoss,
    AOTUnpairedLoss,
    APODownLoss,
    APOZeroLoss,
    BCOPairLoss,
    BetaDPOLoss,
    CalDPOLoss,
    ChiPOLoss,
    CPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingeLoss,
    IPOLoss,
    LDDPOLoss,
    LNDPOLoss,
    NCALoss,
    ODPOLoss,
    ORPOLoss,
    RDPOLoss,
    RobustLoss,
    SFTLoss,
    SimPOLoss,
    SPPOLoss,
    TDPO1Loss,
    TDPO2Loss,
    WPOLoss,
)
from dpo_lightning.losses.divergences import AlphaDivergence, ForwardKL, JensenShannon, ReverseKL


def minus_ls(x):
    """-log sigmoid."""
    return np.logaddexp(0.0, -x)


def sigmoid(x):
    return np.exp(-minus_ls(x))


def smoothed(x, e):
    """The logistic loss of labels that are wrong at a rate of e."""
    return (1 - e) * minus_ls(x) + e * minus_ls(-x)


def derivative(divergence, u):
    """f'(exp u)."""
    match divergence:
        case ForwardKL():
            return 1 - np.exp(-u)
        case JensenShannon():
            return np.log(2) - np.logaddexp(0, -u)
        case AlphaDivergence(alpha) if alpha != 1:
            return (np.exp((alpha - 1) * u) - 1) / (alpha - 1)
    return u


def difference(p, divergence, nw=1, nl=1):
    return derivative(divergence, p.a) / nw - derivative(divergence, p.r) / nl


def ipo(p, beta, normalization, divergence):
    lengths = (p.nw, p.nl) if normalization == "mean" else (1, 1)
    return (difference(p, divergence, *lengths) - 1 / (2 * beta)) ** 2


def exo(p, beta, label_smoothing, divergence):
    x = beta * difference(p, divergence)
    q = np.array([sigmoid(x), sigmoid(-x)])
    return (q * (-np.array([minus_ls(x), minus_ls(-x)]) - np.log([[1 - label_smoothing], [label_smoothing]]))).sum(0)


def discopop(p, beta, tau, divergence):
    x = beta * difference(p, divergence)
    return sigmoid(-x / tau) * minus_ls(x) + np.exp(-minus_ls(x / tau) - x)


def robust(p, beta, label_smoothing, divergence):
    x, e = beta * difference(p, divergence), label_smoothing
    return ((1 - e) * minus_ls(x) - e * minus_ls(-x)) / (1 - 2 * e)


def nll(p, normalization):
    """The three conventions of an SFT term."""
    if normalization == "token_mean":
        tokens = (p.weights * p.nw).sum()
        return -p.w * p.weights.sum() / (tokens or 1)
    return -p.mw if normalization == "sequence_mean" else -p.w


def desensitised(p, alpha):
    """Log-ratios with the tokens beyond the shorter answer's length times alpha."""
    both = []
    for side in p[:2]:
        tokens = [policy - reference for policy, reference in zip(side.policy, side.reference, strict=True)]
        shorter = np.minimum(p.nw, p.nl)
        both.append(np.array([x[:n].sum() + alpha * x[n:].sum() for x, n in zip(tokens, shorter, strict=True)]))
    return both


def odds(p):
    """Log odds ratio of the mean log-probabilities."""
    with np.errstate(divide="ignore"):
        return (p.mw - p.ml) - (np.log(-np.expm1(p.mw)) - np.log(-np.expm1(p.ml)))


def shaped(mean, alpha):
    """AlphaPO's reward without beta."""
    return (1 - np.exp(-alpha * mean)) / alpha if alpha else mean


def divergences(p):
    """K of both answers."""
    return [np.array([tokens.sum() for tokens in side.kl]) for side in p[:2]]


def tdpo(p, beta, alpha=1.0):
    kw, kl = divergences(p)
    return minus_ls(beta * p.h - alpha * beta * (kl - kw))


def sorted_apart(p, one, other, beta, label_smoothing):
    """Each rank's loss at the pair that its first sample comes from; pairs without weight are last in both."""
    filler = p.weights == 0
    first, second = (np.lexsort((sample, filler)) for sample in (one, other))
    each = np.empty(len(one))
    each[first] = smoothed(beta * (one[first] - other[second]), label_smoothing)
    return each


def squares(p, beta):
    return (p.a - 1 / (2 * beta)) ** 2 + (p.r + 1 / (2 * beta)) ** 2


def chi(p, beta, max_reward):
    phi_w, phi_l = (np.exp(np.minimum(u, 20)) + u for u in (p.a, p.r))
    return minus_ls(np.clip(beta * (phi_w - phi_l), -2 * max_reward, 2 * max_reward))


def dynamic(p, beta, alpha, momentum, keep):
    """M0 is 0 before the first step; what is kept is the part of the batch that is nearest to it."""
    counted = np.flatnonzero(p.weights)
    nearest = counted[np.argsort(np.abs(beta * p.h[counted]), kind="stable")]
    kept = nearest[: int(np.ceil(keep * len(counted)))]
    mean = np.average(beta * p.h[kept], weights=p.weights[kept]) if len(kept) else 0
    losses = np.zeros(len(p.h))
    losses[kept] = minus_ls(max(beta * (1 + alpha * mean), 1e-3) * p.h[kept]) * p.weights.sum() / p.weights[kept].sum()
    return losses


def wpo(p, loss):
    weights = np.ones(len(p.w))
    for side in p[:2]:
        aligned = [policy - pure for policy, pure in zip(side.policy, side.collisions, strict=True)]
        weights *= np.exp([tokens.mean() for tokens in aligned])
    return weights * minus_ls(loss.beta * p.h)


BETA = st.floats(0.01, 5)
SMOOTHING = st.floats(0, 0.49)
NON_NEGATIVE = st.floats(0, 20)
NORMALIZATION = st.sampled_from(["token_mean", "sequence_mean", "sequence_sum"])
ALPHA = st.builds(AlphaDivergence, st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.99, 1.0, 1.5]))
DIVERGENCE = st.sampled_from([ReverseKL(), ForwardKL(), JensenShannon()]) | ALPHA
OF_MARGIN = {"beta": BETA, "divergence": DIVERGENCE}
SMOOTH = OF_MARGIN | {"label_smoothing": SMOOTHING}

FORMULAS = {
    DPOLoss: (
        lambda p, beta, label_smoothing, divergence: smoothed(beta * difference(p, divergence), label_smoothing),
        SMOOTH,
    ),
    RobustLoss: (robust, SMOOTH),
    HingeLoss: (lambda p, beta, divergence: np.maximum(0, 1 - beta * difference(p, divergence)), OF_MARGIN),
    IPOLoss: (ipo, OF_MARGIN | {"normalization": st.sampled_from(["mean", "sum"])}),
    LNDPOLoss: (lambda p, beta, divergence: minus_ls(beta * difference(p, divergence, p.nw, p.nl)), OF_MARGIN),
    EXOLoss: (exo, OF_MARGIN | {"label_smoothing": st.floats(1e-3, 0.49)}),
    DiscoPOPLoss: (discopop, OF_MARGIN | {"tau": st.floats(0.01, 1)}),
    NCALoss: (
        lambda p, beta: minus_ls(beta * p.a) + 0.5 * minus_ls(-beta * p.a) + 0.5 * minus_ls(-beta * p.r),
        {"beta": BETA},
    ),
    BCOPairLoss: (
        lambda p, beta, shift: minus_ls(beta * p.a) + minus_ls(-beta * p.r),
        {"beta": BETA, "shift": st.booleans()},
    ),
    SPPOLoss: (squares, {"beta": BETA}),
    AOTLoss: (
        lambda p, beta, label_smoothing: sorted_apart(p, p.w - p.l, p.rw - p.rl, beta, label_smoothing),
        {"beta": BETA, "label_smoothing": SMOOTHING},
    ),
    AOTUnpairedLoss: (
        lambda p, beta, label_smoothing: sorted_apart(p, p.a, p.r, beta, label_smoothing),
        {"beta": BETA, "label_smoothing": SMOOTHING},
    ),
    APOZeroLoss: (lambda p, beta: 1 - sigmoid(beta * p.a) + sigmoid(beta * p.r), {"beta": BETA}),
    APODownLoss: (lambda p, beta: sigmoid(beta * p.a) + 1 - sigmoid(beta * p.h), {"beta": BETA}),
    SFTLoss: (nll, {"normalization": NORMALIZATION}),
    LDDPOLoss: (
        lambda p, beta, alpha: minus_ls(beta * np.subtract(*desensitised(p, alpha))),
        {"beta": BETA, "alpha": st.floats(0, 1)},
    ),
    WPOLoss: (wpo, {"loss": st.builds(DPOLoss, BETA)}),
    SimPOLoss: (
        lambda p, beta, gamma: minus_ls(beta * (p.mw - p.ml) - gamma),
        {"beta": BETA, "gamma": st.floats(0, 5)},
    ),
    AlphaPOLoss: (
        lambda p, beta, gamma, alpha: minus_ls(beta * (shaped(p.mw, alpha) - shaped(p.ml, alpha)) - gamma),
        {"beta": BETA, "gamma": st.floats(0, 5), "alpha": st.sampled_from([-0.5, -0.25, 0.0, 0.1, 0.25, 1.0])},
    ),
    CPOLoss: (
        lambda p, beta, nll_weight, normalization: minus_ls(beta * (p.w - p.l)) + nll_weight * nll(p, normalization),
        {"beta": BETA, "nll_weight": st.floats(0, 2), "normalization": NORMALIZATION},
    ),
    ORPOLoss: (lambda p, beta: -p.mw + beta * minus_ls(odds(p)), {"beta": BETA}),
    DPOPLoss: (
        lambda p, beta, penalty: minus_ls(beta * (p.h - penalty * np.maximum(0, -p.a))),
        {"beta": BETA, "penalty": NON_NEGATIVE},
    ),
    RDPOLoss: (
        lambda p, beta, alpha: minus_ls(beta * p.h + alpha * (p.nw - p.nl)),
        {"beta": BETA, "alpha": NON_NEGATIVE},
    ),
    ODPOLoss: (
        lambda p, beta, alpha, scaling: minus_ls(
            beta * p.h - alpha * (np.log(p.margins) if scaling == "log" else p.margins)
        ),
        {"beta": BETA, "alpha": NON_NEGATIVE, "scaling": st.sampled_from(["identity", "log"])},
    ),
    TDPO1Loss: (tdpo, {"beta": BETA}),
    TDPO2Loss: (tdpo, {"beta": BETA, "alpha": st.floats(0, 2)}),
    BetaDPOLoss: (
        dynamic,
        {
            "beta": BETA,
            "alpha": st.floats(0, 2),
            "momentum": st.floats(0, 0.99),
            "keep": st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        },
    ),
    CalDPOLoss: (lambda p, beta: minus_ls(p.h) + squares(p, beta), {"beta": BETA}),
    ChiPOLoss: (chi, {"beta": BETA, "max_reward": st.floats(0.1, 5)}),
}
"""By class: its formula, and what its options may be. A class without one is held by its check numbers."""
