"""`recommend`: which setting to take, with the reason and the doubt; and how KL depends on the first key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_lightning.intervals import Interval
from dpo_lightning.sweeps.grid import parse_value
from dpo_lightning.sweeps.results import ACCURACY, WIN_RATE, Record, Setting

SIGNIFICANCE = 0.05
MOST_NAMED = 6
"""Settings that a reason names."""

LEAST_VALUES = 3
"""Different values of a key from which a correlation is reported."""

LEAST_POINTS = 4
"""Points from which a correlation has an interval."""


@dataclass(frozen=True)
class Recommendation:
    """A setting and why it was chosen.

    Attributes:
        setting: its label.
        reason: sentences for the reader.
        rivals: labels of the settings that cannot be told from the best one -> p-value, NaN without rows to compare.
        best: label of the setting with the highest estimate.
        measure: by which settings were compared.
    """

    setting: str
    reason: str
    rivals: dict[str, float]
    best: str
    measure: str


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a swept key and KL over all points.

    Attributes:
        rho: the correlation with its 95 % interval, whose bounds are NaN where it has none.
        p_value: two-sided, by permutation of the points.
        points: number of points.
    """

    key: str
    rho: Interval
    p_value: float
    points: int


def recommend(settings: Sequence[Setting], kl: str) -> Recommendation | None:
    """Choose the setting with the least drift among those that cannot be told from the best one.

    The best is the one with the highest win rate, where all settings have one, else with the highest held-out accuracy.
    Two settings are told apart by the exact two-sided sign test over the same held-out rows; without outcomes of
    rows, by intervals that do not overlap.

    Args:
        settings: evaluated settings.
        kl: the measure of drift.

    Returns:
        None if no setting has been evaluated on pairs.
    """
    measure = WIN_RATE if settings and all(setting.measure(WIN_RATE) for setting in settings) else ACCURACY
    known = {s.label: (s, found) for s in settings if (found := s.measure(measure)) is not None}
    if not known:
        return None

    def drift(name: str) -> float:
        found = known[name][0].measure(kl)
        return math.inf if found is None else found.estimate

    best = max(known, key=lambda name: (known[name][1].estimate, -drift(name)))
    rivals = {}
    for name in (name for name in known if name != best):
        differs, p_value = compare(known[best], known[name], paired=measure == ACCURACY)
        if not differs:
            rivals[name] = p_value
    chosen = min([best, *rivals], key=drift)
    found = known[chosen][0].measure(kl)
    reason = explain(chosen, best, known[best][1], rivals, measure, len(known), found)
    return Recommendation(chosen, reason, rivals, best, measure)


def compare(best: tuple[Setting, Interval], other: tuple[Setting, Interval], *, paired: bool) -> tuple[bool, float]:
    """Return whether a setting differs from the best one, and the p-value, NaN if intervals were compared."""
    first, second = best[0].outcomes, other[0].outcomes
    if paired and first and len(first) == len(second):
        p_value = sign_test(first, second)
        return p_value < SIGNIFICANCE, p_value
    return other[1].high < best[1].low, math.nan


def sign_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the p-value of the exact two-sided sign test; rows with equal outcomes are left out."""
    from scipy.stats import binomtest

    better = sum(a > b for a, b in zip(first, second, strict=True))
    worse = sum(a < b for a, b in zip(first, second, strict=True))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def explain(
    chosen: str, best: str, top: Interval, rivals: dict[str, float], measure: str, count: int, drift: Interval | None
) -> str:
    """Return the reason and the doubt in sentences."""
    what = "win rate" if measure == WIN_RATE else "held-out accuracy by implicit reward"
    name = "It" if chosen == best else best
    first = f"{name} has the highest {what}: {top.estimate:.3f} (95 % interval {top.low:.3f} to {top.high:.3f})."
    if count == 1:
        return f"{first} It is the only setting that has been evaluated."
    if not rivals:
        return f"{first} Each other setting is distinguishable from it."
    tested = all(not math.isnan(p_value) for p_value in rivals.values())
    how = "exact sign test over the same held-out rows" if tested else "the intervals overlap"
    named = [f"{rival} (p = {p_value:.2f})" if tested else rival for rival, p_value in rivals.items()]
    several = ", ".join(named[:MOST_NAMED]) + f" and {len(named) - MOST_NAMED} more" * (len(named) > MOST_NAMED)
    everything = len(rivals) == count - 1
    doubt = f"{'No setting is' if everything else 'Not'} distinguishable from {best} ({how}): {several}."
    if drift is None:
        return f"{first} {doubt} The drift from the reference is not known."
    last = f"Of these, {chosen} has drifted least from the reference: {drift.estimate:.3g} nats per token."
    return f"{first} {doubt} {last}" + " More held-out rows or seeds are needed to tell them apart." * everything


def correlate(records: Sequence[Record], kl: str) -> Correlation | None:
    """Correlate the first swept key with KL, if it has three or more different numbers as values.

    The interval is Fisher's with the variance for ranks of Bonett and Wright (2000), Psychometrika 65.

    Args:
        records: of all points.
        kl: the measure of drift.
    """
    import numpy as np
    from scipy.stats import norm, permutation_test, rankdata, zscore

    key = next((name for record in records for name in record.point.setting), None)
    known = [record for record in records if key is not None and kl in record.measures]
    values = [parse_value(record.point.overrides[key]) for record in known] if key else []
    drifts = [record.measures[kl].estimate for record in known]
    numbers = all(isinstance(value, float) for value in values)
    if key is None or not numbers or len(set(values)) < LEAST_VALUES or len(set(drifts)) == 1:
        return None

    # Spearman's correlation is Pearson's of the ranks; those of a permuted sample are its permuted ranks.
    ranks, others = zscore(rankdata(values)), zscore(rankdata(drifts))
    rho, count = float(np.mean(ranks * others)), len(values)
    tested = permutation_test(
        (ranks,), lambda x, axis: np.mean(x * others, axis), vectorized=True, permutation_type="pairings", rng=0
    )
    low = high = math.nan
    if count >= LEAST_POINTS and abs(rho) < 1 - 1e-9:
        half = norm.ppf(0.975) * math.sqrt((1 + rho**2 / 2) / (count - 3))
        low, high = math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
    return Correlation(key, Interval(rho, low, high), float(tested.pvalue), count)
