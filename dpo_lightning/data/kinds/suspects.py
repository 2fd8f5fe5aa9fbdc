"""Selects the few rows that may repeat or contradict others, by hashes: the checks then compare only their texts."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Key = Callable[[T], Hashable]

PRUNING_ROUNDS = 8
"""How often `find_cyclic` removes edges: none is left of a graph without cycles whose longest path has 16 edges, as one
ranking of 17 answers.
"""


def hash_keys(items: Sequence[T], key: Key[T]) -> np.ndarray[Any, Any]:
    """Hash the key of each item, int64 of shape `[items]`: equal keys have equal hashes, in this process only."""
    return np.fromiter((hash(key(item)) for item in items), np.int64, len(items))


def select_marked(items: Sequence[T], chosen: np.ndarray[Any, Any]) -> list[T]:
    """The items for which a mask of shape `[items]` is true."""
    return [items[place] for place in np.flatnonzero(chosen).tolist()]


def mark_repeated(hashes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mark the hashes that occur more than once, bool of shape `[items]`."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)


def select_repeated(items: Sequence[T], key: Key[T]) -> list[T]:
    """Select the items whose key another item has as well.

    A few others may be selected with them, since hashes are compared and not keys.
    """
    return select_marked(items, mark_repeated(hash_keys(items, key)))


def select_shared(items: Sequence[T], others: Sequence[T], key: Key[T]) -> tuple[list[T], list[T]]:
    """Select the items whose key one of the others has as well, and these others; see `select_repeated`."""
    left, right = hash_keys(items, key), hash_keys(others, key)
    return select_marked(items, np.isin(left, right)), select_marked(others, np.isin(right, left))


def select_contradicting(items: Sequence[T], key: Callable[[T], tuple[Hashable, Sequence[Hashable]]]) -> list[T]:
    """Select the ranked lists that repeat another one, or whose context has rankings that form a cycle.

    Two answers that are ranked in either order are a cycle too: a ranking is a path through its answers.

    Args:
        items: the ranked lists.
        key: returns the context, in which answers are compared, and the answers, the best first.
    """
    whole, contexts = array("q"), array("q")
    edges, owners = array("q"), array("q")  # the better and the worse one of neighbours; their context
    for item in items:
        context, answers = key(item)
        whole.append(hash((context, tuple(answers))))
        contexts.append(hash(context))
        nodes = [hash((contexts[-1], answer)) for answer in answers]
        for better, worse in pairwise(nodes):
            if better != worse:
                edges.extend((better, worse))
                owners.append(contexts[-1])
    starts, ends = np.array(edges, np.int64).reshape(-1, 2).T
    cyclic = np.array(owners, np.int64)[find_cyclic(starts, ends)]
    repeated = mark_repeated(np.array(whole, np.int64))
    return select_marked(items, repeated | np.isin(np.array(contexts, np.int64), cyclic))


def find_cyclic(starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The indices of the edges of a graph that may be part of a cycle; both arguments have the shape `[edges]`.

    An edge is part of no cycle if no edge begins where it ends, or none ends where it begins. Such edges are removed
    `PRUNING_ROUNDS` times; of paths that are longer than twice as many edges, some remain.
    """
    kept = np.arange(len(starts))
    for _ in range(PRUNING_ROUNDS):
        kept = kept[np.isin(ends[kept], starts[kept]) & np.isin(starts[kept], ends[kept])]
    return kept
