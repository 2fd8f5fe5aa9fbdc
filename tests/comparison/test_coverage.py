"""Intervals at 95 % hold the true figure in 93 to 97 % of comparisons, small ones and rates near 0 and 1 included."""

import functools

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multinomial

from dpo_lightning.comparison.bradley_terry import fit_bradley_terry
from dpo_lightning.intervals import mean_interval, ratio_interval, score_interval

CELLS = {
    "any wins, ties and losses": lambda rng: rng.dirichlet([1, 1, 1]),
    "no ties": lambda rng: split(rng.uniform(), 0),
    "a fifth ties": lambda rng: split(rng.uniform(), 0.2),
    "half ties": lambda rng: split(rng.uniform(), 0.5),
    "near 1, no ties": lambda rng: split(1 - rng.uniform(0, 0.1), 0),
    "near 0, no ties": lambda rng: split(rng.uniform(0, 0.1), 0),
    "near 1, no losses": lambda rng: split(1, rng.uniform(0, 0.2)),
}
"""How the true shares of a comparison are drawn. A rate that is the same in all comparisons is another matter: the
counts are whole numbers, so that any interval of a fixed rate near 0 or 1 holds it too often or too rarely (Brown, Cai
and DasGupta 2001, Statistical Science 16)."""


def split(share, ties):
    """Shares of wins, ties and losses, of which `share` of the decided ones are wins."""
    return np.array([share * (1 - ties), ties, (1 - share) * (1 - ties)])


@functools.cache
def bounds(wins, ties, losses):
    return score_interval([1.0] * wins + [0.5] * ties + [0.0] * losses)[1:]


def holds(count, shares):
    low, high = bounds(*map(int, count))
    return low - 1e-12 <= shares[0] + shares[1] / 2 <= high + 1e-12


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("prompts", [10, 20])
def test_small_comparisons(prompts, cells):
    """Summed over all outcomes that a comparison of so many prompts can have, for 200 drawn true shares."""
    rng = np.random.default_rng(0)
    possible = np.array([(w, t, prompts - w - t) for w in range(prompts + 1) for t in range(prompts + 1 - w)])
    drawn = [CELLS[cells](rng) for _ in range(200)]
    held = [multinomial.pmf(possible, prompts, shares) @ [holds(c, shares) for c in possible] for shares in drawn]
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("cells", CELLS)
def test_a_thousand_simulated_comparisons(cells):
    """Of 200 prompts each."""
    rng = np.random.default_rng(0)
    drawn = [CELLS[cells](rng) for _ in range(1000)]
    held = np.mean([holds(rng.multinomial(200, shares), shares) for shares in drawn])
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("rows", [20, 72, 200])
@pytest.mark.parametrize("shape", [0.5, 2.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_means_of_skewed_values(rows, shape, sign):
    """Student's t interval holds the mean of 20 values of shape 0.5 in 89 % of samples."""
    rng = np.random.default_rng(3)
    intervals = [mean_interval(sign * rng.gamma(shape, size=rows)) for _ in range(1000)]
    assert 0.93 <= np.mean([low <= sign * shape <= high for _, low, high in intervals]) <= 0.97


@pytest.mark.parametrize("rows", [72, 200])
def test_means_per_token(rows):
    """Of answers of unlike lengths, many of them cut at the longest."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        tokens = np.where(rng.random(rows) < 0.3, 128, rng.integers(5, 129, rows))
        _, low, high = ratio_interval(tokens * rng.gamma(1, 0.1, rows), tokens)
        held += low <= 0.1 <= high
    assert 0.93 <= held / 1000 <= 0.97


@pytest.mark.parametrize("prompts", [20, 200])
def test_strengths_of_three_models(prompts):
    rng = np.random.default_rng(0)
    strengths = np.array([1, 0.3, -1.3])
    held = []
    for _ in range(400):
        table = np.zeros((prompts, 3, 3))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            table[:, i, j] = rng.random(prompts) < expit(strengths[i] - strengths[j])
            table[:, j, i] = 1 - table[:, i, j]
        held += [low <= s <= high for s, (_, low, high) in zip(strengths, fit_bradley_terry(table), strict=True)]
    assert 0.93 <= np.mean(held) <= 0.97
