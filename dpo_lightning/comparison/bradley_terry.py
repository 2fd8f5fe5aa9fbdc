"""Strengths of several models out of their comparisons in pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpo_lightning.intervals import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

PRIOR = 0.5
"""Wins that each model gets against each other one beforehand, so that strengths stay finite."""


def fit_bradley_terry(wins: ArrayLike, confidence: float = 0.95) -> list[Interval]:
    """Fit a strength s to each model, so that i beats j with probability sigmoid(s_i - s_j).

    The model of Bradley and Terry 1952 (Biometrika 39), a tie counting as half a win for both, with half a win of each
    model against each other one added: two models get +-log((wins + 1/2) / (losses + 1/2)) / 2. The strengths have
    mean 0. Their intervals are normal ones with the variance H^-1 J H^-1, H the negative Hessian of the log-likelihood
    and J the sum of outer products of each prompt's gradient (White 1982, Econometrica 50), so that comparisons on
    the same prompt need not be independent; the added half wins count in J as well, so that a model that always wins
    has an interval of finite width.

    Args:
        wins: shape (prompts, models, models): `wins[p, i, j]` is 1 where model i beats j on prompt p, 0.5 for a tie,
            else 0; both `wins[p, i, j]` and `wins[p, j, i]` are 0 where the two were not compared.
        confidence: the probability that an interval holds the true strength.

    Returns:
        The strengths in the order of the models.

    Raises:
        ValueError: the shape is another one, or the two entries of a pair do not sum to 0 or 1.
    """
    import numpy as np
    from scipy.stats import norm

    table = _check(wins)
    total = table.sum(0) + PRIOR
    np.fill_diagonal(total, 0)
    strengths = _fit(total)
    p = _probabilities(strengths)
    games = (total + total.T) * p * (1 - p)
    hessian = np.diag(games.sum(1)) - games
    gradients = (table - (table + table.transpose(0, 2, 1)) * p).sum(2)
    prior = PRIOR * (p**2 + (1 - p) ** 2)
    np.fill_diagonal(prior, 0)
    outer = gradients.T @ gradients + np.diag(prior.sum(1)) - prior
    inverse = np.linalg.pinv(hessian)
    half = norm.isf((1 - confidence) / 2) * np.sqrt(np.diag(inverse @ outer @ inverse))
    return [Interval(float(s), float(s - h), float(s + h)) for s, h in zip(strengths, half, strict=True)]


def _check(wins: ArrayLike) -> np.ndarray:
    import numpy as np

    table = np.array(wins, dtype=np.float64)
    if table.ndim != 3 or table.shape[1] != table.shape[2] or table.shape[0] < 1 or table.shape[1] < 2:
        raise ValueError(f"wins must have the shape (prompts, models, models), got {table.shape}")
    for block in table:
        np.fill_diagonal(block, 0)
    sums = table + table.transpose(0, 2, 1)
    wrong = np.argwhere(((sums != 0) & (sums != 1)) | (table < 0))
    if len(wrong):
        p, i, j = (int(k) for k in wrong[0])
        raise ValueError(f"wins[{p}, {i}, {j}] and wins[{p}, {j}, {i}] must be 0 or more and sum to 1, or to 0")
    return table


def _probabilities(strengths: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(strengths[:, None] - strengths[None, :])


def _fit(total: np.ndarray) -> np.ndarray:
    """Strengths of mean 0 at which the expected wins of each model are those of the table."""
    import numpy as np
    from scipy.optimize import root

    def gradient(strengths: np.ndarray) -> np.ndarray:
        return (total - (total + total.T) * _probabilities(strengths)).sum(1) - strengths.sum()

    solution = root(gradient, np.zeros(len(total)), tol=1e-12)
    strengths: np.ndarray = solution.x - solution.x.mean()
    return strengths
