"""Digests and lengths of a run's rows as arrays, without an object per answer, and the order of rows in a pass."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dpo_lightning.data.encoding.digests import DIGEST_BYTES, answer_digest
from dpo_lightning.data.examples import Encoded
from dpo_lightning.data.row_sizes import RowSizes
from dpo_lightning.references.token_table import TokenTable, as_strings, find_keys

Digests: TypeAlias = tuple[bytes, ...]
"""A digest for each of a row's answers, the mismatched one of an unpaired row included."""


class AnswerDigests(NamedTuple):
    """The digests of a set of rows.

    Attributes:
        digests: one per answer, uint8 `[answer, 32]`, in the order of rows and then of their answers.
        counts: number of answers of each row, int64 `[row]`.
    """

    digests: np.ndarray
    counts: np.ndarray


def row_digests(row: Encoded) -> Digests:
    """Digests of the prompt and answer ids, one per answer: equal where a model computes the same values."""
    return tuple(answer_digest(row.prompt_ids, answer) for answer in row.answers)


def list_digests(rows: Sequence[Encoded]) -> AnswerDigests:
    """The digests of all answers: from `answer_digests` and `answer_counts` where `rows` has them, else computed."""
    stored = getattr(rows, "answer_digests", None)
    if stored is not None:
        return AnswerDigests(np.asarray(stored), np.asarray(rows.answer_counts, dtype=np.int64))  # type: ignore[attr-defined]
    found, counts = bytearray(), np.zeros(len(rows), dtype=np.int64)
    for number, row in enumerate(rows):
        counts[number] = len(row.answers)
        found += b"".join(row_digests(row))
    return AnswerDigests(np.frombuffer(found, dtype=np.uint8).reshape(-1, DIGEST_BYTES), counts)


class RowView(Sequence[Encoded]):
    """Some rows of several sets, in an order of its own; a row is taken from its set when it is indexed."""

    def __init__(self, sets: Sequence[Sequence[Encoded]], numbers: np.ndarray) -> None:
        """Choose rows.

        Args:
            sets: the sets.
            numbers: the rows, counted through all sets.
        """
        self.numbers = numbers
        self._sets = sets
        self._starts = np.cumsum([0, *map(len, sets)]).tolist()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        number = int(self.numbers[index])
        place = bisect_right(self._starts, number) - 1
        return self._sets[place][number - self._starts[place]]

    @property
    def sizes(self) -> RowSizes:
        """The lengths of the rows."""
        return RowSizes(*(column[self.numbers] for column in _join_sizes(self._sets)))

    def choose(self, chosen: np.ndarray) -> RowView:
        """The rows for which `chosen` is True, in their order."""
        return RowView(self._sets, self.numbers[chosen])


class RowIndex:
    """The distinct answers of the rows of several sets, by number, in the order of their digests."""

    def __init__(self, sets: Mapping[str, Sequence[Encoded]], digests: Mapping[str, AnswerDigests]) -> None:
        """Number the answers.

        Args:
            sets: the rows.
            digests: what `list_digests` returns for each set.
        """
        self.sets = list(sets.values())
        self.counts = np.concatenate([digests[name].counts for name in sets])
        self.starts = np.cumsum(self.counts) - self.counts
        keys = np.concatenate([digests[name].digests for name in sets])
        _, first, self.answers = np.unique(as_strings(keys), return_index=True, return_inverse=True)
        self.keys = keys[first]
        """Digests of the distinct answers, ascending."""

    def contained(self, tables: Iterable[TokenTable]) -> np.ndarray:
        """Whether each distinct answer is in one of the tables."""
        found, keys = np.zeros(len(self.keys), dtype=bool), as_strings(self.keys)
        for table in tables:
            places = find_keys(keys, as_strings(table.keys))
            found[places[places >= 0]] = True
        return found

    def lacking(self, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Which of the rows have an answer that is not known; `known` is by distinct answer."""
        lost = np.concatenate([[0], np.cumsum(~known[self.answers])])
        return lost[self.starts[rows] + self.counts[rows]] > lost[self.starts[rows]]

    def answers_of(self, rows: Iterable[int]) -> np.ndarray:
        """The distinct answers of some rows, by number."""
        own = [self.answers[self.starts[row] : self.starts[row] + self.counts[row]] for row in rows]
        return np.unique(np.concatenate(own))

    def order(self) -> RowView:
        """The distinct rows, longest first, and among rows of one length by the digests of their answers in turn."""
        lengths = _join_sizes(self.sets).lengths
        rows, places = np.arange(len(self.counts)), range(int(self.counts.max(initial=0)))
        for place in reversed(places):
            rows = rows[np.argsort(self._column(rows, place), kind="stable")]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        last = np.full(len(rows), fill_value=False)  # of the rows with the same answers
        last[-1:] = True
        for place in places:
            column = self._column(rows, place)
            last[:-1] |= column[1:] != column[:-1]
        return RowView(self.sets, rows[last])

    def _column(self, rows: np.ndarray, place: int) -> np.ndarray:
        """The answer of each row at a place, as its number; -1 for rows with fewer answers."""
        at = np.minimum(self.starts[rows] + place, len(self.answers) - 1)
        return np.where(place < self.counts[rows], self.answers[at], -1)


def _join_sizes(sets: Iterable[Sequence[Encoded]]) -> RowSizes:
    """The sizes of the rows of several sets, one set after the other."""
    return RowSizes(*map(np.concatenate, zip(*map(RowSizes.of, sets), strict=True)))
