"""Wilson's interval against published tables, its own equation, and what has to hold."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_lightning.intervals import wilson


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
