"""Win rate that two models would have if their answers were equally long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpo_lightning.intervals import Interval, count_outcomes, fit_tie_share

if TYPE_CHECKING:
    import numpy as np

PRIOR_VARIANCE = 2.5**2
"""Of the coefficient of the length: what a normal prior around 0 allows, so that it stays finite."""

FARTHEST = 30.0
"""Logits beyond which a rate is 0 or 1."""


def control_length(
    outcomes: Sequence[float], length_a: Sequence[float], length_b: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Win rate of model A at equal length, with its interval.

    The model is the one of length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475, without its
    terms for single prompts): the probability that A wins is sigmoid(q + k tanh(d / s)), with d the length of A's
    answer less that of B's and s the standard deviation of d. The rate is sigmoid(q), which is the rate at d = 0.

    k has a normal prior with standard deviation 2.5, so that it is finite where length alone tells wins from losses.
    With x = tanh(d / s) and p the fitted probabilities, q solves sum((1 - c x) (y - p)) = 0, with c the coefficient of
    the regression of 1 on x with weights p (1 - p): unlike sum(y - p) = 0, this does not change in first order with k,
    so that the prior on k does not draw the rate to the plain one. Without the prior both have the same solution.

    The interval holds all q that the score test of logistic regression does not reject, with k fitted to each and the
    variance lowered for ties as in `score_interval`: it equals that interval where all lengths are equal. Where A's
    answers are longer by the same amount on every prompt, length and quality cannot be told apart, and the interval
    is close to 0..1.

    Args:
        outcomes: for each prompt 1 where A's answer is better, 0 where B's is, 0.5 where neither is.
        length_a: lengths of A's answers, in any unit.
        length_b: lengths of B's answers, in the same unit.
        confidence: the probability that the interval holds the true rate.

    Raises:
        ValueError: there is no outcome, one is not 0, 0.5 or 1, a length is not finite, or the numbers of outcomes and
            lengths differ.
    """
    import numpy as np

    counts = count_outcomes(outcomes)
    if not len(outcomes) == len(length_a) == len(length_b):
        raise ValueError(f"{len(outcomes)} outcomes need as many lengths, got {len(length_a)} and {len(length_b)}")
    y = np.asarray(outcomes, dtype=np.float64)
    difference = np.asarray(length_a, dtype=np.float64) - np.asarray(length_b, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ValueError(f"the lengths of prompt {int(np.flatnonzero(~np.isfinite(difference))[0])} must be finite")
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.sign(difference)
    return Interval(
        _fit_rate(y, x), _lower_bound(y, x, counts, confidence), 1 - _lower_bound(1 - y, -x, counts[::-1], confidence)
    )


def _fit_rate(y: np.ndarray, x: np.ndarray) -> float:
    """The fitted rate at equal length; 0 or 1 where no outcome says otherwise."""
    from scipy.optimize import brentq
    from scipy.special import expit

    ends = [_score(theta, y, x)[0] for theta in (-FARTHEST, FARTHEST)]
    if ends[0] <= 0 or ends[1] >= 0 or y.min() == y.max() != 0.5:
        return float(y.mean())
    return float(expit(brentq(lambda theta: _score(theta, y, x)[0], -FARTHEST, FARTHEST, xtol=1e-14)))


def _lower_bound(y: np.ndarray, x: np.ndarray, counts: tuple[int, int, int], confidence: float) -> float:
    """The lowest rate that the score test does not reject."""
    from scipy.optimize import brentq
    from scipy.special import expit, logit
    from scipy.stats import norm

    z = norm.isf((1 - confidence) / 2)

    def excess(theta: float) -> float:
        score, variance, rate = _score(theta, y, x)
        spread = rate * (1 - rate)
        shrink = 1 - fit_tie_share(*counts, rate) / (4 * spread) if spread > 0 else 1.0
        return score - z * math.sqrt(max(variance * shrink, 0.0))

    if excess(-FARTHEST) <= 0:
        return 0.0
    rate = _fit_rate(y, x)
    # Where all outcomes are equal, the estimate itself is a root as well: the bracket ends just below it.
    top = FARTHEST if rate == 1 else float(logit(rate)) - 1e-6
    return float(expit(brentq(excess, -FARTHEST, top, xtol=1e-14)))


def _score(theta: float, y: np.ndarray, x: np.ndarray) -> tuple[float, float, float]:
    """Efficient score of theta, the logit at equal length, its variance without ties, and the mean fitted rate.

    The coefficient k of the length is fitted for this theta; the score is what is left of sum(y - p) when its
    projection on the score of k is taken away (Cox and Hinkley 1974, Theoretical Statistics, chapter 9).
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    precision = 1 / PRIOR_VARIANCE

    def slope(k: float) -> float:
        return float(x @ (y - expit(theta + k * x)) - precision * k)

    largest = float(abs(x).sum()) / precision + 1
    k = brentq(slope, -largest, largest, xtol=1e-13)
    p = expit(theta + k * x)
    weight = p * (1 - p)
    share = float(weight @ x) / (float(weight @ x**2) + precision)
    residual = 1 - share * x
    score = float((y - p).sum()) - share * precision * k
    return score, float(weight @ residual**2), float(p.mean())
