"""Confidence intervals of proportions, win rates, means and other statistics of independent rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Interval(NamedTuple):
    """An estimate with its confidence bounds."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22), valid for few trials and near 0 and 1.

    Raises:
        ValueError: `trials` is not positive, or `successes` lies outside 0..trials.
    """
    from scipy.stats import binomtest  # takes 0.5 s, which training would not need

    bounds = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(bounds.low), float(bounds.high))


def count_outcomes(values: Sequence[float]) -> tuple[int, int, int]:
    """Count wins (1), ties (0.5) and losses (0).

    Raises:
        ValueError: there is no value, or one is not 0, 0.5 or 1.
    """
    counts = {1.0: 0, 0.5: 0, 0.0: 0}
    for i, value in enumerate(values):
        if value not in counts:
            raise ValueError(f"outcome {i} is {value!r}; it must be 1 (win), 0.5 (tie) or 0 (loss)")
        counts[float(value)] += 1
    if not any(counts.values()):
        raise ValueError("there must be at least one outcome")
    return counts[1.0], counts[0.5], counts[0.0]


def fit_tie_share(wins: int, ties: int, losses: int, rate: float) -> float:
    """Maximum-likelihood share of ties, given the win rate in which a tie counts half.

    The root t of n t^2 - (2 losses rate + 2 wins (1 - rate) + 2 ties) t + 4 ties rate (1 - rate) = 0 that lies in
    0..2 min(rate, 1 - rate) (Tango 1998, Statistics in Medicine 17, 891-908, in other symbols).
    """
    product = 4 * rate * (1 - rate)
    linear = 2 * (losses * rate + wins * (1 - rate) + ties)
    if ties == 0 or product <= 0:
        return 0.0
    root = math.sqrt(max(linear**2 - 4 * (wins + ties + losses) * ties * product, 0.0))
    return min(2 * ties * product / (linear + root), 2 * rate, 2 * (1 - rate))


def score_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Score interval of a win rate in which a tie counts half, or of an accuracy with ties.

    All rates W with (mean - W)^2 <= z^2 (W (1 - W) - t(W) / 4) / n, where t(W) is `fit_tie_share`: the score interval
    of Tango 1998 (Statistics in Medicine 17, 891-908) for a paired difference, which is 2 W - 1. Without ties it is
    Wilson's. Where all values are equal it has a width, unlike a bootstrap. Exchanging 0 and 1 mirrors it exactly.

    Args:
        values: 1, 0.5 or 0 for each row.
        confidence: the probability that the interval holds the true rate.

    Raises:
        ValueError: there is no value, or one is not 0, 0.5 or 1.
    """
    wins, ties, losses = count_outcomes(values)
    low = _lower_bound(wins, ties, losses, confidence)
    high = 1 - _lower_bound(losses, ties, wins, confidence)
    return Interval((wins + ties / 2) / (wins + ties + losses), low, high)


def _lower_bound(wins: int, ties: int, losses: int, confidence: float) -> float:
    from scipy.optimize import brentq
    from scipy.stats import norm

    count, total, z = wins + ties + losses, wins + ties / 2, norm.isf((1 - confidence) / 2)
    if total == 0:
        return 0.0

    def excess(rate: float) -> float:
        variance = rate * (1 - rate) - fit_tie_share(wins, ties, losses, rate) / 4
        return total - count * rate - z * math.sqrt(count * max(variance, 0.0))

    # Where all values are equal, the estimate itself is a root as well: the bracket ends just below it.
    return float(brentq(excess, 0.0, (total - 1e-6) / count, xtol=1e-15))


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval of a mean, corrected for the skewness of the values; of zero width where all values are equal.

    The bounds are mean - s T at y = +-t / sqrt(n), where T = 3 ((1 + g (y - g / 6 n))^(1/3) - 1) / g inverts the cubic
    transformation of Hall 1992 (J. R. Statist. Soc. B 54, 221-228), s is the standard deviation, g the adjusted
    skewness (Joanes and Gill 1998, G1) and t Student's quantile for n - 1 degrees of freedom. Values without skewness
    get Student's t interval. Negated values have the negated interval.

    Raises:
        ValueError: there are fewer than two values, or one is not finite.
    """
    import numpy as np
    from scipy.stats import t

    array = _finite(values)
    count, mean = len(array), float(array.mean())
    deviation = float(array.std(ddof=1))
    if array.min() == array.max() or deviation == 0:
        return Interval(mean, mean, mean)
    skewness = float(np.mean(((array - mean) / deviation) ** 3)) * count**2 / ((count - 1) * max(count - 2, 1))
    reach = float(t.isf((1 - confidence) / 2, count - 1)) / math.sqrt(count)

    def invert(y: float) -> float:
        y -= skewness / (6 * count)
        inner = skewness * y
        if skewness == 0:
            return y
        # expm1 and log1p keep the digits that a root close to 1 would lose.
        root = math.expm1(math.log1p(inner) / 3) if inner > -0.5 else math.cbrt(1 + inner) - 1
        return 3 * root / skewness

    return Interval(mean, mean - deviation * invert(reach), mean - deviation * invert(-reach))


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of sum(numerators) / sum(denominators) over rows, such as a mean per token over answers.

    It is `mean_interval` of the linearized ratio R + (x - R y) / mean(y) of each row (Cochran 1977, Sampling
    Techniques, chapter 6), whose mean is the ratio R.

    Args:
        numerators: x, the sum over each row's parts.
        denominators: y, the number of each row's parts.
        confidence: the probability that the interval holds the true ratio.

    Raises:
        ValueError: there are fewer than two rows, the columns differ in length, a value is not finite, or the
            denominators sum to 0.
    """
    x, y = _columns(numerators, denominators)
    total = float(y.sum())
    if total == 0:
        raise ValueError("the denominators must not sum to 0")
    ratio = float(x.sum()) / total
    low, high = mean_interval((x - ratio * y) / y.mean(), confidence)[1:]
    return Interval(ratio, ratio + low, ratio + high)


def _columns(*columns: Sequence[float]) -> list[np.ndarray]:
    """Columns of rows as arrays of one length, or a ValueError."""
    arrays = [_finite(column) for column in columns]
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(f"columns must be of one length, got {[len(array) for array in arrays]}")
    return arrays


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"an interval needs at least two values in one dimension, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.flatnonzero(~np.isfinite(array))[0])} must be finite")
    return array
