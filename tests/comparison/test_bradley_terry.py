"""Strengths against a direct fit and the cases of two models, and what has to hold."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from dpo_lightning.comparison.bradley_terry import fit_bradley_terry


def make_table(rng, strengths, prompts, ties=0.0):
    """Outcomes of every pair of models on every prompt."""
    count = len(strengths)
    table = np.zeros((prompts, count, count))
    for i in range(count):
        for j in range(i):
            won = (rng.random(prompts) < expit(strengths[i] - strengths[j])).astype(float)
            won[rng.random(prompts) < ties] = 0.5
            table[:, i, j], table[:, j, i] = won, 1 - won
    return table


def pair(outcomes):
    """The table of two models."""
    table = np.zeros((len(outcomes), 2, 2))
    table[:, 0, 1], table[:, 1, 0] = outcomes, 1 - np.array(outcomes)
    return table


@pytest.mark.parametrize("models", [3, 5])
def test_strengths_are_the_most_likely_ones(models):
    rng = np.random.default_rng(models)
    table = make_table(rng, rng.normal(size=models), 40, ties=0.2)
    table[:10, 0, 1] = table[:10, 1, 0] = 0  # not compared on some prompts
    total = table.sum(0) + 0.5 * (1 - np.eye(models))

    def surprise(s):
        return (total * np.logaddexp(0, s[None, :] - s[:, None])).sum() + s.sum() ** 2

    expected = minimize(surprise, np.zeros(models), tol=1e-12).x
    assert [interval.estimate for interval in fit_bradley_terry(table)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("wins", "losses"), [(7, 3), (10, 0), (0, 1), (300, 100)])
def test_two_models_have_the_logit_of_their_win_rate(wins, losses):
    """With half a win more for each, and the variance that a proportion's logit has."""
    strong, weak = fit_bradley_terry(pair([1] * wins + [0] * losses))
    logit = math.log((wins + 0.5) / (losses + 0.5))
    assert strong.estimate - weak.estimate == pytest.approx(logit, abs=1e-9)
    half = norm.isf(0.025) / math.sqrt((wins + losses + 1) * expit(logit) * expit(-logit))
    assert strong == pytest.approx((logit / 2, (logit - half) / 2, (logit + half) / 2), abs=1e-9)
    assert (-weak.high, -weak.low) == pytest.approx((strong.low, strong.high), abs=1e-9)


def test_ties_narrow_the_interval():
    decided, tied = (fit_bradley_terry(pair(outcomes))[0] for outcomes in ([0.0, 1.0] * 50, [0.5] * 100))
    assert decided.estimate == pytest.approx(0, abs=1e-12)
    assert tied.estimate == pytest.approx(0, abs=1e-12)
    assert 0 < tied.high < decided.high / 3


def test_models_in_another_order_and_outcomes_the_other_way_round():
    table = make_table(np.random.default_rng(0), [1, 0, -0.5, 2], 30, ties=0.3)
    intervals = fit_bradley_terry(table)
    order = [2, 0, 3, 1]
    moved = fit_bradley_terry(table[:, order][:, :, order])
    assert np.array(moved) == pytest.approx(np.array(intervals)[order], abs=1e-9)
    negated = np.array(fit_bradley_terry(table.transpose(0, 2, 1)))
    assert -negated[:, [0, 2, 1]] == pytest.approx(np.array(intervals), abs=1e-9)
    assert sum(interval.estimate for interval in intervals) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("prompts", [1, 10, 1000])
def test_a_model_that_always_wins_is_the_strongest_and_finite(prompts):
    table = make_table(np.random.default_rng(0), [100, 0, 0], prompts)
    first, *others = fit_bradley_terry(table)
    assert first.estimate > max(other.estimate for other in others)
    assert 0.5 < first.high - first.low < 20


def test_models_that_were_never_compared_stand_apart_and_finite():
    table = np.zeros((20, 3, 3))
    table[:, 0, 1] = 1
    assert all(math.isfinite(bound) for interval in fit_bradley_terry(table) for bound in interval)


def test_prompts_are_the_unit_of_the_interval():
    """Four models that win and lose together on a prompt teach less than four that do so alone."""
    rng = np.random.default_rng(0)
    alone = np.zeros((200, 4, 4))
    won = (rng.random((200, 3)) < 0.5).astype(float)
    alone[:, 0, 1:], alone[:, 1:, 0] = won, 1 - won
    together = alone.copy()
    together[:, 0, 1:], together[:, 1:, 0] = won[:, :1], 1 - won[:, :1]
    widths = [interval.high - interval.low for interval, *_ in map(fit_bradley_terry, (alone, together))]
    assert widths[1] == pytest.approx(math.sqrt(3) * widths[0], rel=0.1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((3, 2)), r"\(prompts, models, models\), got \(3, 2\)"),
        (np.zeros((3, 1, 1)), r"got \(3, 1, 1\)"),
        (np.zeros((0, 2, 2)), r"got \(0, 2, 2\)"),
        ([[[0, 1], [1, 0]]], r"wins\[0, 0, 1\] and wins\[0, 1, 0\]"),
        ([[[0, 2], [-1, 0]]], r"wins\[0, 0, 1\]"),
        ([[[0, math.nan], [1, 0]]], r"wins\[0, 0, 1\]"),
    ],
)
def test_other_tables_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry(table)
