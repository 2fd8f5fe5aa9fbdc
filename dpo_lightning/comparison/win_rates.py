"""Win rate of a model against another one, whether it differs from a half, and how many prompts would show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpo_lightning.intervals import Interval, count_outcomes, score_interval

if TYPE_CHECKING:
    import numpy as np

LEVEL, POWER = 0.05, 0.8
"""Of the sign test: the probability to see a difference where there is none, and where there is one."""


@dataclass(frozen=True)
class WinRate:
    """How model A fared against model B.

    Attributes:
        wins: prompts on which A's answer is the better one.
        ties: prompts on which neither is.
        losses: prompts on which B's answer is the better one.
        rate: the share of wins, a tie counting half, with its 95 % score interval.
        p_value: of the exact two-sided sign test, ties left out; 1 where all are ties.
        needed: prompts with which the sign test finds the difference with a probability of 80 %, if the true shares
            are the ones seen; None where wins equal losses.
    """

    wins: int
    ties: int
    losses: int
    rate: Interval
    p_value: float
    needed: int | None


def compare_outcomes(outcomes: Sequence[float]) -> WinRate:
    """Compute the win rate of model A and its uncertainty.

    Args:
        outcomes: for each prompt 1 where A's answer is better, 0 where B's is, 0.5 where neither is.

    Raises:
        ValueError: there is no outcome, or one is not 0, 0.5 or 1.
    """
    from scipy.stats import binomtest

    wins, ties, losses = count_outcomes(outcomes)
    p_value = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return WinRate(wins, ties, losses, score_interval(outcomes), p_value, count_needed(wins, ties, losses))


def find_power(decided: int | np.ndarray, share: float) -> np.ndarray:
    """Probability that the exact two-sided sign test at 5 % rejects a share of a half.

    Args:
        decided: numbers of prompts without ties.
        share: the true share of wins among them.
    """
    from scipy.stats import binom

    # The most losses, or wins, with which 2 P(X <= k) <= 0.05; -1 where there are none.
    limit = binom.ppf(LEVEL / 2, decided, 0.5)
    limit = limit - (2 * binom.cdf(limit, decided, 0.5) > LEVEL)
    power: np.ndarray = binom.cdf(limit, decided, share) + binom.sf(decided - limit - 1, decided, share)
    return power


def count_needed(wins: int, ties: int, losses: int) -> int | None:
    """Prompts with which the sign test finds the seen difference with a probability of 80 %, ties included.

    It is the mean of the exact power over the number of decided prompts, which is binomial. The power is a sawtooth in
    the number of prompts: it is 80 % or more with this number and less with one prompt fewer. None where wins equal
    losses.
    """
    if wins == losses:
        return None
    import numpy as np
    from scipy.stats import binom

    share = max(wins, losses) / (wins + losses)
    decision = (wins + losses) / (wins + ties + losses)

    def is_enough(prompts: int) -> bool:
        first, last = binom.ppf([1e-9, 1 - 1e-9], prompts, decision)
        decided = np.arange(first, last + 1)
        return float(binom.pmf(decided, prompts, decision) @ find_power(decided, share)) >= POWER

    few, enough = 0, 1
    while not is_enough(enough):
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if is_enough(middle) else (middle, enough)
    return enough
