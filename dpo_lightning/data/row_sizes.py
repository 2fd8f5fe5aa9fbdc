"""`RowSizes`: the lengths of many rows as arrays, from which batches are formed without reading the rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from dpo_lightning.data.common_prefix import count_common
from dpo_lightning.data.examples import Encoded


class RowSizes(NamedTuple):
    """Lengths of encoded rows in tokens; all arrays have the shape `[rows]`.

    Attributes:
        prompts: tokens of the prompt.
        counts: number of answers.
        longest: tokens of the longest answer.
        totals: tokens of all answers together.
        shared: tokens that all answers begin with, without the last token of each, which is never an input.
    """

    prompts: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    longest: np.ndarray[Any, Any]
    totals: np.ndarray[Any, Any]
    shared: np.ndarray[Any, Any]

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> RowSizes:
        """The sizes that a sequence has in an attribute `sizes`, or those measured on its rows."""
        stored: RowSizes | None = getattr(rows, "sizes", None)
        if stored is not None:
            return stored
        flat = np.fromiter(chain.from_iterable(map(measure_row, rows)), np.int64, len(rows) * len(cls._fields))
        return cls(*flat.reshape(-1, len(cls._fields)).T)

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Tokens of the prompt and the longest answer, `[rows]`."""
        return self.prompts + self.longest


def measure_row(row: Encoded) -> tuple[int, ...]:
    """The sizes of one row, in the order of the fields of `RowSizes`."""
    lengths = [len(answer.ids) for answer in row.answers]
    return len(row.prompt_ids), len(lengths), max(lengths), sum(lengths), count_shared(row)


def count_shared(row: Encoded) -> int:
    """The number of ids that all answers of a row begin with, without the last id of each."""
    return count_shared_ids([answer.ids for answer in row.answers])


def count_shared_ids(sequences: Sequence[Sequence[int]]) -> int:
    """The number of ids that all sequences begin with, without the last id of each."""
    first, *others = [list(ids[:-1]) for ids in sequences]
    return min((count_common(first, other) for other in others), default=len(first))
