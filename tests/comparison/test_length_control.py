"""The rate at equal length against an independent fit, planted effects, and what has to hold."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize, root
from scipy.special import expit, logit
from scipy.stats import norm

from dpo_lightning.comparison.length_control import control_length
from dpo_lightning.intervals import fit_tie_share, score_interval


def compare(rng, count, quality, effect, longer=80.0, ties=0.0):
    """Outcomes of a judge that wins with sigmoid(quality + effect tanh(d / sd)), and the lengths of both answers."""
    length_a, length_b = rng.gamma(4, 30, count) + longer, rng.gamma(4, 30, count)
    chance = expit(quality + effect * np.tanh((length_a - length_b) / math.sqrt(2 * 4 * 30**2)))
    outcomes = (rng.random(count) < chance).astype(float)
    outcomes[rng.random(count) < ties] = 0.5
    return outcomes, length_a, length_b


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_estimate_and_bounds_solve_their_equations(ties):
    """Two equations for q and k at the estimate; at a bound, a score of z deviations with the best k."""
    y, a, b = compare(np.random.default_rng(2), 60, 0.3, 1.5, ties=ties)
    x, precision = np.tanh((a - b) / np.std(a - b)), 1 / 2.5**2

    def equations(q, k):
        p = expit(q + k * x)
        weight = p * (1 - p)
        away = 1 - x * (weight @ x) / (weight @ x**2 + precision)
        return away @ (y - p), x @ (y - p) - precision * k, away**2 @ weight, p.mean()

    interval = control_length(y, a, b)
    estimate = root(lambda v: equations(*v)[:2], [0, 0], tol=1e-12).x[0]
    assert interval.estimate == pytest.approx(expit(estimate), abs=1e-9)
    counts = [int((y == value).sum()) for value in (1, 0.5, 0)]
    for bound, sign in zip(interval[1:], (1, -1), strict=True):
        q = logit(bound)
        k = brentq(lambda k, q=q: equations(q, k)[1], -100, 100, xtol=1e-13)
        score, _, variance, rate = equations(q, k)
        variance *= 1 - fit_tie_share(*counts, rate) / (4 * rate * (1 - rate))
        assert score == pytest.approx(sign * norm.isf(0.025) * math.sqrt(variance), abs=1e-6)


def test_many_prompts_have_the_rate_of_logistic_regression():
    """The prior does not matter then."""
    y, a, b = compare(np.random.default_rng(3), 20_000, 0.3, 1.5)
    x = np.tanh((a - b) / np.std(a - b))

    def surprise(v):
        z = v[0] + v[1] * x
        return y @ np.logaddexp(0, -z) + (1 - y) @ np.logaddexp(0, z)

    fitted = minimize(surprise, [0, 0])
    interval = control_length(y, a, b)
    assert interval.estimate == pytest.approx(expit(fitted.x[0]), abs=2e-4)
    p = expit(fitted.x[0] + fitted.x[1] * x)
    columns = np.stack([np.ones_like(x), x])
    half = norm.isf(0.025) * math.sqrt(np.linalg.inv((columns * p * (1 - p)) @ columns.T)[0, 0])
    assert interval[1:] == pytest.approx(expit(fitted.x[0] + np.array([-half, half])), abs=1e-3)


def test_a_planted_effect_of_the_length_is_taken_away():
    """The controlled rate is that of equal lengths; the plain one is the length's doing."""
    y, a, b = compare(np.random.default_rng(0), 1000, -0.4, 1.5)
    controlled, plain = control_length(y, a, b), score_interval(y)
    assert controlled.low < expit(-0.4) < controlled.high < 0.5
    assert plain.low > 0.5


@pytest.mark.parametrize("quality", [0.0, 1.0])
def test_without_an_effect_of_the_length_both_rates_agree(quality):
    y, a, b = compare(np.random.default_rng(1), 2000, quality, 0, longer=0)
    controlled, plain = control_length(y, a, b), score_interval(y)
    assert controlled == pytest.approx(plain, abs=0.01)


def test_its_interval_holds_the_rate_as_often_as_it_says():
    """Of 150 comparisons 142 are expected, and 135 to 148 are likely; the plain interval holds it rarely."""
    rng = np.random.default_rng(0)
    drawn = [compare(rng, 40, 0.5, 1.5) for _ in range(150)]
    held = [[low <= expit(0.5) <= high for _, low, high in (control_length(*c), score_interval(c[0]))] for c in drawn]
    controlled, plain = np.mean(held, axis=0)
    assert 0.9 <= controlled <= 0.987
    assert plain < 0.5


pairs = st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(1, 300), st.integers(1, 300)), min_size=1)


@settings(max_examples=40)
@given(pairs)
@example([(1, 10, 5)] * 8)
@example([(1, 200, 100), (1, 210, 100), (0, 100, 205), (0, 90, 200)])
@example([(0.5, 110, 100), (1, 110, 100), (0, 110, 100)])
def test_swapping_the_models_mirrors_it(rows):
    """Whatever the rows: one alone, all equal, or told apart by length."""
    y, a, b = np.array(rows, dtype=float).T
    interval, mirrored = control_length(y, a, b), control_length(1 - y, b, a)
    assert -1e-9 <= interval.low - 1e-9 <= interval.estimate <= interval.high + 1e-9 <= 1 + 2e-9
    assert (1 - mirrored[0], 1 - mirrored[2], 1 - mirrored[1]) == pytest.approx(interval, abs=1e-9)


@pytest.mark.parametrize("outcomes", [[1] * 10, [0] * 10, [0.5] * 10, [1] * 6 + [0.5] * 2 + [0] * 2, [1]])
def test_where_all_lengths_are_equal_it_is_the_plain_interval(outcomes):
    lengths = np.arange(len(outcomes)) + 100
    assert control_length(outcomes, lengths, lengths) == pytest.approx(score_interval(outcomes), abs=1e-9)


def test_one_tie_says_little():
    interval = control_length([0.5], [5], [9])
    assert interval.estimate == 0.5
    assert interval.low < 0.1 < 0.9 < interval.high


def test_where_one_is_always_as_much_longer_nothing_is_known():
    """Length and quality cannot be told apart, however many prompts there are."""
    lengths = np.arange(200)
    interval = control_length([1] * 150 + [0] * 50, lengths + 50, lengths)
    assert interval.low < 0.01
    assert interval.high > 0.99


def test_a_winner_that_is_mostly_longer_is_less_certain():
    rng = np.random.default_rng(4)
    lengths = rng.integers(50, 100, 20)
    controlled = control_length([1] * 20, lengths + rng.integers(-5, 60, 20), lengths)
    assert controlled.estimate == controlled.high == 1
    assert 0.2 < controlled.low < score_interval([1] * 20).low - 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 0], [5], [5, 6]), "2 outcomes need as many lengths, got 1 and 2"),
        (([1, 0], [5, math.nan], [5, 6]), "lengths of prompt 1 must be finite"),
        (([0.3], [5], [5]), "outcome 0 is 0.3"),
    ],
)
def test_unusable_rows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        control_length(*arguments)
