"""Intervals against published tables, their own equations and SciPy, and what has to hold."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from dpo_lightning.intervals import mean_interval, ratio_interval, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_newcombes_table(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3: the score interval at 95 %."""
    interval = wilson(successes, trials)
    assert interval.estimate == pytest.approx(successes / trials)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_the_equation(count, confidence):
    """Centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)."""
    k, n = count
    p, z = k / n, NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / n
    centre, half = (p + z * z / (2 * n)) / scale, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    interval = wilson(k, n, confidence)
    assert interval.low == pytest.approx(centre - half, abs=1e-9)
    assert interval.high == pytest.approx(centre + half, abs=1e-9)


@given(counts)
def test_bounds_hold_the_estimate_and_mirror(count):
    """Inside 0..1 around the estimate; failures have the mirrored interval."""
    k, n = count
    interval, mirrored = wilson(k, n), wilson(n - k, n)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-9)


def test_more_trials_and_less_confidence_are_narrower():
    """The width falls about as the root of the trials."""

    def width(interval):
        return interval.high - interval.low

    assert width(wilson(400, 800)) < 0.6 * width(wilson(100, 200))
    assert width(wilson(100, 200, 0.8)) < width(wilson(100, 200, 0.95))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 10), (11, 10), (1, -1)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="must"):
        wilson(successes, trials)


SKEWED = np.random.default_rng(0).gamma(0.5, size=30)


@pytest.mark.parametrize("values", [[1, 2, 3], [-4, 0, 0, 0, 4], [7, 7, 9, 9], [1, 3]])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_mean_without_skewness_has_students_interval(values, confidence):
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    interval = mean_interval(values, confidence)
    assert interval == pytest.approx((np.mean(values), expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("values", [SKEWED, -SKEWED, [0.0] * 19 + [1.0], [1.0, 2.0, 4.0]])
def test_a_mean_has_halls_interval(values):
    """sqrt(n) (T + g T^2 / 3 + g^2 T^3 / 27 + g / 6n) is the t quantile at both bounds, with SciPy's skewness."""
    n, s, g = len(values), np.std(values, ddof=1), stats.skew(values, bias=False)

    def bound(level):
        def equation(t):
            return t + g * t**2 / 3 + g**2 * t**3 / 27 + g / (6 * n) - stats.t.ppf(level, n - 1) / math.sqrt(n)

        return np.mean(values) - s * brentq(equation, -1e3, 1e3, xtol=1e-14)

    assert mean_interval(values) == pytest.approx((np.mean(values), bound(0.975), bound(0.025)), abs=1e-9)


@pytest.mark.parametrize("skewness", [1e-12, 1e-9, 1e-6])
def test_a_little_skewness_changes_little(skewness):
    """The root of a number close to 1 keeps its digits."""
    values = np.array([-2.0, -1, 0, 1, 2])
    assert mean_interval(values + skewness * values**2) == pytest.approx(mean_interval(values), abs=10 * skewness)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30))
def test_a_mean_lies_in_its_interval_and_negated_values_mirror_it(values):
    interval, mirrored = mean_interval(values), mean_interval([-value for value in values])
    assert interval.low <= interval.estimate <= interval.high
    assert (-mirrored.high, -mirrored.low) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_equal_values_have_an_interval_without_width():
    assert mean_interval([0.1] * 7) == pytest.approx((0.1, 0.1, 0.1))


def test_a_ratio_over_equal_denominators_is_a_mean():
    expected = [bound / 8 for bound in mean_interval(SKEWED)]
    assert ratio_interval(SKEWED, [8.0] * len(SKEWED)) == pytest.approx(expected)


def test_a_ratio_of_proportional_rows_is_certain():
    assert ratio_interval([1.0, 2.0, 5.0], [2.0, 4.0, 10.0]) == pytest.approx((0.5, 0.5, 0.5))


def test_a_ratio_is_as_wide_as_its_bootstrap():
    """For many rows; dividing each row's numerator by its own denominator would be another figure."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 128, 2000).astype(float)
    sums = tokens * rng.gamma(2, 0.05, 2000) / (1 + tokens / 100)
    interval = ratio_interval(sums, tokens)
    low, high = stats.bootstrap(
        (sums, tokens),
        lambda x, y, axis: x.sum(axis) / y.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        batch=500,
        rng=rng,
    ).confidence_interval
    assert interval[1:] == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0]), r"at least two values .* \(1,\)"),
        (lambda: mean_interval([[1.0, 2.0]]), r"\(1, 2\)"),
        (lambda: mean_interval([1.0, math.nan]), "value 1 must be finite"),
        (lambda: ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0]), r"one length, got \[2, 3\]"),
        (lambda: ratio_interval([1.0, 2.0], [0.0, 0.0]), "sum to 0"),
    ],
)
def test_unusable_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
