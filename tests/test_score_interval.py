"""The score interval with ties against an independent equation, and what has to hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from dpo_lightning.intervals import fit_tie_share, score_interval, wilson


def outcomes(wins, ties, losses):
    return [1.0] * wins + [0.5] * ties + [0.0] * losses


counts = st.tuples(*[st.integers(0, 40)] * 3).filter(sum)


def solve_quartic(wins, ties, losses):
    """Tango's bounds in closed form: the outer real roots of a quartic (Yang, Sun and Hardin, doi 10.1002/sim.5561)."""
    n, b, d, g = wins + ties + losses, wins + losses, wins - losses, stats.norm.isf(0.025) ** 2
    roots = np.roots(
        [
            n**2 * (n / g + 1) ** 2,
            -n * d * (n / g + 1) * (4 * n / g + 1),
            2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (b / g + 1),
            n * d * (2 * b / g + 1) - d**3 * (4 * n / g + 1) / g,
            d**2 * (d**2 / g - b) / g,
        ]
    )
    real = roots[abs(roots.imag) < 1e-6].real
    return (1 + real.min()) / 2, (1 + real.max()) / 2


@pytest.mark.parametrize("count", [(7, 2, 1), (3, 10, 1), (30, 50, 20), (150, 1364, 86), (1, 40, 0), (12, 1, 30)])
def test_tangos_interval(count):
    interval = score_interval(outcomes(*count))
    low, high = solve_quartic(*count)
    assert interval == pytest.approx(((count[0] + count[1] / 2) / sum(count), low, high), abs=1e-6)


@pytest.mark.parametrize(("wins", "losses"), [(10, 0), (0, 10), (1, 0), (7, 3), (81, 182), (1, 199)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_without_ties_it_is_wilsons(wins, losses, confidence):
    expected = wilson(wins, wins + losses, confidence)
    assert score_interval(outcomes(wins, 0, losses), confidence) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [1, 10, 72, 1000])
def test_all_ties_leave_room_for_as_much_as_all_wins_do(count):
    """With n ties the rate may be z^2 / (n + z^2) / 2 off: half of what it may be off with n wins."""
    low, high = score_interval(outcomes(0, count, 0))[1:]
    z = stats.norm.isf(0.025)
    assert high - 0.5 == pytest.approx(z**2 / (count + z**2) / 2, abs=1e-9)
    assert 0.5 - low == pytest.approx(high - 0.5, abs=1e-9)


@given(counts)
def test_swapping_the_models_mirrors_it(count):
    interval, mirrored = score_interval(outcomes(*count)), score_interval(outcomes(*count[::-1]))
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
    assert (1 - mirrored[0], 1 - mirrored[2], 1 - mirrored[1]) == pytest.approx(interval, abs=1e-12)


def test_ties_narrow_it():
    """A tie is certain to count half: its variance is lower than that of a win in every other prompt."""
    with_ties, without = score_interval(outcomes(20, 60, 20)), score_interval(outcomes(50, 0, 50))
    assert with_ties.high - with_ties.low < 0.7 * (without.high - without.low)


@pytest.mark.parametrize("count", [(7, 2, 1), (0, 5, 3), (1, 20, 1)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.83])
def test_the_share_of_ties_is_the_most_likely_one(count, rate):
    wins, ties, losses = count

    def surprise(share):
        return -(wins * math.log(rate - share / 2) + losses * math.log(1 - rate - share / 2) + ties * math.log(share))

    most = 2 * min(rate, 1 - rate)
    found = minimize_scalar(surprise, bounds=(1e-9, most - 1e-9), method="bounded", options={"xatol": 1e-10}).x
    assert fit_tie_share(*count, rate) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"), [([], "at least one"), ([1, 0.7], "outcome 1 is 0.7"), ([math.nan], "outcome 0 is nan")]
)
def test_other_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        score_interval(values)
