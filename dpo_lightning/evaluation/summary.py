"""The measures of an evaluation with their 95 % intervals, computed from its items alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from dpo_lightning.intervals import Interval, mean_interval, ratio_interval, wilson

Item: TypeAlias = Mapping[str, Any]
Measure: TypeAlias = dict[str, float | int | None]
"""`estimate`, `low`, `high` and `count`, the number of rows; the bounds are None where there are too few rows."""

LEAST = 5
"""Rows below which only proportions get an interval."""

LENGTH_BINS = (-100, -25, 0, 25, 100)
"""Bounds of the bins of the chosen answer's length minus the rejected one's, in tokens."""


def summarize(items: Sequence[Item]) -> tuple[dict[str, Measure], dict[str, dict[str, Any]]]:
    """Return the measures by name, and the accuracy by slices of the rows.

    A measure whose values no item has is left out.
    """
    measures = {name: found for name, compute in MEASURES.items() if (found := compute(items)) is not None}
    return measures, slice_accuracy(items)


def measure_share(values: Sequence[bool]) -> Measure | None:
    """Return the share of true values with Wilson's interval; None without values."""
    return to_measure(wilson(sum(values), len(values)), len(values)) if values else None


def measure_mean(values: Sequence[float]) -> Measure | None:
    """Return the mean with its interval; None without values."""
    if not values:
        return None
    if len(values) < LEAST:
        return to_measure(Interval(math.fsum(values) / len(values), math.nan, math.nan), len(values))
    return to_measure(mean_interval(values), len(values))


def measure_ratio(sums: Sequence[float], counts: Sequence[float]) -> Measure | None:
    """Return a mean per token with its interval; None without tokens.

    Args:
        sums: the sum over the tokens of each row.
        counts: the tokens of each row.
    """
    if not sum(counts):
        return None
    if len(sums) < LEAST:
        return to_measure(Interval(math.fsum(sums) / sum(counts), math.nan, math.nan), len(sums))
    return to_measure(ratio_interval(sums, counts), len(sums))


def to_measure(interval: Interval, count: int) -> Measure:
    """Return an interval as it is written; bounds that are no numbers become None."""
    low, high = (bound if math.isfinite(bound) else None for bound in interval[1:])
    return {"estimate": interval.estimate, "low": low, "high": high, "count": count}


def column(items: Sequence[Item], name: str) -> list[Any]:
    """Return the values of a key in the items that have one."""
    return [item[name] for item in items if item.get(name) is not None]


def compare_columns(items: Sequence[Item], one: str, other: str) -> list[float]:
    """Return the differences of two keys in the items that have both."""
    return [item[one] - item[other] for item in items if item.get(one) is not None and item.get(other) is not None]


def measure_perplexity(items: Sequence[Item], name: str) -> Measure | None:
    """Return exp of the mean negative log-probability per token of the chosen answers; the bounds likewise."""
    rows = [item for item in items if item.get(name) is not None]
    found = measure_ratio([-row[name] for row in rows], column(rows, "chosen_tokens"))
    if found is None:
        return None
    return {key: value if key == "count" or value is None else exponentiate(value) for key, value in found.items()}


def exponentiate(value: float) -> float:
    """Return exp of a value, infinity where it is larger than a float can be, as for a model that has diverged."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def measure_divergence(items: Sequence[Item], *names: str) -> Measure | None:
    """Return the divergence per token of the named answers: `chosen`, `rejected` or, with an empty name, generated."""
    keys = [(f"{name}_kl", f"{name}_tokens") if name else ("kl", "tokens") for name in names]
    rows = [item for item in items if all(item.get(kl) is not None for kl, _ in keys)]
    return measure_ratio(
        [sum(row[kl] for kl, _ in keys) for row in rows], [sum(row[tokens] for _, tokens in keys) for row in rows]
    )


def slice_accuracy(items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Return the accuracy by bins of the length difference, by `group` and by `language`.

    It is the accuracy by reward, or by likelihood for an evaluation without a reference.
    """
    known = [item for item in items if item.get("chosen_logps") is not None]
    names = {"length difference": label_length, "group": lambda item: item.get("group"), "language": label_language}
    slices: dict[str, dict[str, Any]] = {}
    for name, label in names.items():
        parts: dict[str, list[Item]] = {}
        for item in known:
            if own := label(item):
                parts.setdefault(own, []).append(item)
        ordered = sorted(parts, key=LENGTH_LABELS.index) if name == "length difference" else sorted(parts)
        if len(parts) > 1 or name == "length difference":
            slices[name] = {own: {"accuracy": measure_accuracy(parts[own])} for own in ordered}
    return slices


def measure_accuracy(items: Sequence[Item]) -> Measure | None:
    """Return the share of pairs whose chosen answer gained more against the reference, or without one is likelier."""
    margins = column(items, "logratio_margin") or compare_columns(items, "chosen_logps", "rejected_logps")
    return measure_share([margin > 0 for margin in margins])


def measure_loss_accuracy(items: Sequence[Item]) -> Measure | None:
    """Return the share of pairs whose chosen answer has the higher reward of the loss.

    None where the loss ranks the answers of every pair as the log-ratios do, so that it is no other figure.
    """
    rows = [item for item in items if item.get("margin") is not None]
    wins = [item["margin"] > 0 for item in rows]
    return None if wins == [gain > 0 for gain in column(rows, "logratio_margin")] else measure_share(wins)


def name_bins(bounds: Sequence[int]) -> list[str]:
    """Name the bins between bounds, and those below the first and from the last on."""
    inner = [f"{low} to {high - 1}" for low, high in pairwise(bounds)]
    return [f"below {bounds[0]}", *inner, f"{bounds[-1]} or more"]


LENGTH_LABELS = name_bins(LENGTH_BINS)


def label_length(item: Item) -> str:
    """Name the bin of a pair's length difference: tokens of the chosen answer minus those of the rejected one."""
    return LENGTH_LABELS[int(np.digitize(item["chosen_tokens"] - item["rejected_tokens"], LENGTH_BINS))]


def label_language(item: Item) -> str:
    """Return the language of a row as its file names it; empty without one."""
    return str(item.get("language") or "")


MEASURES: dict[str, Callable[[Sequence[Item]], Measure | None]] = {
    "loss": lambda items: measure_mean(column(items, "loss")),
    "accuracy/reward": lambda items: measure_share([value > 0 for value in column(items, "logratio_margin")]),
    "ties/reward": lambda items: measure_share([value == 0 for value in column(items, "logratio_margin")]),
    "accuracy/loss": measure_loss_accuracy,
    "accuracy/likelihood": lambda items: measure_share(
        [value > 0 for value in compare_columns(items, "chosen_logps", "rejected_logps")]
    ),
    "ties/likelihood": lambda items: measure_share(
        [value == 0 for value in compare_columns(items, "chosen_logps", "rejected_logps")]
    ),
    "accuracy/likelihood/reference": lambda items: measure_share(
        [value > 0 for value in compare_columns(items, "reference_chosen_logps", "reference_rejected_logps")]
    ),
    "margin/reward": lambda items: measure_mean(column(items, "margin")),
    "margin/nats": lambda items: measure_mean(column(items, "logratio_margin")),
    "perplexity/chosen": lambda items: measure_perplexity(items, "chosen_logps"),
    "perplexity/chosen/reference": lambda items: measure_perplexity(items, "reference_chosen_logps"),
    "kl/held_out/token": lambda items: measure_divergence(items, "chosen", "rejected"),
    "kl/generated/token": lambda items: measure_divergence(items, ""),
    "kl/generated/answer": lambda items: measure_mean(column(items, "kl")),
    "length/tokens": lambda items: measure_mean(column(items, "tokens")),
    "ended": lambda items: measure_share(column(items, "ended")),
    "repetition": lambda items: measure_mean(column(items, "repetition")),
    "refusals": lambda items: measure_share(column(items, "refusal")),
    "language_match": lambda items: measure_share(column(items, "language_match")),
}
"""Name of a measure -> the function that computes it from the items."""
