"""Preference cycles: A preferred to B, B to C, and C to A, of any length."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

from dpo_lightning.data.examples import Origin

SHOWN = 3
"""Rows of a cycle that are named besides the one that closes it."""


class Cycle(NamedTuple):
    """Rows that cannot all be right."""

    closing: Origin
    others: tuple[Origin, ...]
    """The first few of the others, from the one after the closing row on."""
    length: int
    """How many rows there are, the closing one with them."""


def cycles(preferences: Iterable[tuple[Hashable, Hashable, Origin]]) -> Iterator[Cycle]:
    """A cycle for every row that closes one on a walk along preferences; none where there is an order of all answers.

    Linear in the number of preferences.

    Args:
        preferences: the better answer, the worse one, and the row; of rows about other prompts the answers differ.
    """
    worse: dict[Hashable, dict[Hashable, Origin]] = {}
    for better, other, origin in preferences:
        worse.setdefault(better, {}).setdefault(other, origin)
    done: set[Hashable] = set()
    for start in worse:
        if start not in done:
            yield from _walked(start, worse, done)


def _walked(
    start: Hashable, worse: Mapping[Hashable, Mapping[Hashable, Origin]], done: set[Hashable]
) -> Iterator[Cycle]:
    """Cycles that are found depth first from an answer."""
    places = {start: 0}  # where an answer stands on the way
    rows: list[Origin] = []  # what leads on from each
    way = [iter(worse[start].items())]
    while way:
        answer, origin = next(way[-1], (None, None))
        if origin is None:
            way.pop()
            done.add(places.popitem()[0])
            if rows:
                rows.pop()
        elif answer in places:
            first = places[answer]
            yield Cycle(origin, tuple(rows[first : first + SHOWN]), len(rows) - first + 1)
        elif answer not in done and answer in worse:
            places[answer] = len(way)
            rows.append(origin)
            way.append(iter(worse[answer].items()))
