"""Confidence intervals of proportions, such as the accuracy on held-out pairs."""

from __future__ import annotations

from typing import NamedTuple


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
