"""Preference cycles: A preferred to B, B to C, and C to A, of any length."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple

from dpo_lightning.data.examples import Origin

SHOWN = 3
"""Rows of a cycle that a message lists, besides the one that closes it."""


class Cycle(NamedTuple):
    """Rows whose preferences form a cycle, so that no ranking satisfies all of them."""

    closing: Origin
    others: tuple[Origin, ...]
    """The first `SHOWN` of the other rows, in the order of the cycle after the closing one."""
    length: int
    """Number of rows in the cycle, the closing one included."""


def find_cycles(preferences: Iterable[tuple[Hashable, Hashable, Origin]]) -> Iterator[Cycle]:
    """Find cycles by depth-first search: one for each preference that leads back to an answer on the current path.

    There are none if and only if some ranking of all answers satisfies every preference. Linear in the number of
    preferences.

    Args:
        preferences: the better answer, the worse one, and the row. Answers to different prompts must differ, so keys
            have to include the prompt.
    """
    worse: dict[Hashable, dict[Hashable, Origin]] = {}
    for better, other, origin in preferences:
        worse.setdefault(better, {}).setdefault(other, origin)
    done: set[Hashable] = set()
    for start in worse:
        if start not in done:
            yield from _search_from(start, worse, done)


def _search_from(
    start: Hashable, worse: Mapping[Hashable, Mapping[Hashable, Origin]], done: set[Hashable]
) -> Iterator[Cycle]:
    """Find cycles depth first from one answer; `done` collects answers whose successors are all visited."""
    places = {start: 0}  # answer -> its position on the current path
    rows: list[Origin] = []  # the row that leads from each answer of the path to the next
    path = [iter(worse[start].items())]
    while path:
        answer, origin = next(path[-1], (None, None))
        if origin is None:
            path.pop()
            done.add(places.popitem()[0])
            if rows:
                rows.pop()
        elif answer in places:
            first = places[answer]
            yield Cycle(origin, tuple(rows[first : first + SHOWN]), len(rows) - first + 1)
        elif answer not in done and answer in worse:
            places[answer] = len(path)
            rows.append(origin)
            path.append(iter(worse[answer].items()))
