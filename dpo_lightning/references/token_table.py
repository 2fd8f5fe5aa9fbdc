"""`TokenTable`: log-probabilities of the scored tokens of many answers, found by the digests of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpo_lightning.data.encoding.digests import DIGEST_BYTES
from dpo_lightning.references.stored_values import StoredValues

SUMMED = 2**20
"""Values that are summed at a time, so that temporary memory does not grow with the table."""


class TokenTable(NamedTuple):
    """Arrays of a few bytes per answer, and the token values, which may be in a mapped file.

    Attributes:
        keys: the answers' digests, uint8 `[answer, 32]`, ascending as byte strings.
        offsets: where the values of each answer begin, and the end of the last.
        stored: the token values.
        stored_sums: the sums if the file has them, else None.
    """

    keys: np.ndarray
    offsets: Int[Tensor, " answers+1"]
    stored: StoredValues
    stored_sums: Float[Tensor, " answer"] | None = None

    @classmethod
    def of(cls, answers: Mapping[bytes, Float[Tensor, " token"]]) -> TokenTable:
        """Build a table from the token log-probabilities of each answer, by its digest."""
        digests = sorted(answers)
        keys = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        lengths = torch.tensor([len(answers[key]) for key in digests], dtype=torch.int64)
        values = torch.cat([torch.zeros(0, dtype=torch.float32), *(answers[key] for key in digests)])
        return cls(keys, cumulative_ends(lengths), StoredValues(values))

    @property
    def values(self) -> Float[Tensor, " token"]:
        """All token values in nats, float32; reads the whole file."""
        return self.stored.whole()

    def sums(self) -> tuple[Float[Tensor, " answer"], Float[Tensor, " answer"]]:
        """Sums in nats and numbers of scored tokens of each answer."""
        sums = sum_answers(self.offsets, self.values) if self.stored_sums is None else self.stored_sums
        return sums, self.offsets.diff().float()

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Return the places of answers in the table, -1 where it lacks one, for digests uint8 `[answer, 32]`."""
        return find_keys(as_strings(self.keys), as_strings(digests))


def sum_answers(offsets: Int[Tensor, " answers+1"], values: Float[Tensor, " token"]) -> Float[Tensor, " answer"]:
    """Sum the values of each answer in float64, one after the other, and round to float32."""
    lengths, ends = offsets.diff(), offsets.numpy()
    sums = torch.zeros(len(lengths), dtype=torch.float32)
    begin = 0
    while begin < len(lengths):
        end = max(begin + 1, int(np.searchsorted(ends, ends[begin] + SUMMED, side="right")) - 1)
        owners = torch.arange(end - begin).repeat_interleave(lengths[begin:end])
        part = values[int(ends[begin]) : int(ends[end])].double()
        sums[begin:end] = torch.zeros(end - begin, dtype=torch.float64).index_add(0, owners, part).float()
        begin = end
    return sums


def as_strings(digests: np.ndarray) -> np.ndarray:
    """View digests uint8 `[answer, 32]` as byte strings, which NumPy sorts and compares like Python's `bytes`.

    An item taken from the view loses zero bytes at its end; compare items, and read their bytes from the original.
    """
    return np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").reshape(-1)


def find_keys(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the places of byte strings among ascending ones, -1 where one is not among them."""
    if not len(keys):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    places[keys[places] != wanted] = -1
    return places


def cumulative_ends(lengths: Int[Tensor, " answer"]) -> Int[Tensor, " answers+1"]:
    """The offsets of consecutive stretches of these lengths: 0, then the end of each."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


class MergedTables(NamedTuple):
    """Several tables as one, whose values are read from them one answer at a time.

    Attributes:
        keys: the digests of all answers, ascending.
        offsets: where the values of each answer begin, and the end of the last.
        sums: sum of each answer in nats.
        sources: the table that has each answer.
        starts: where the answer's values begin in that table.
        tables: the tables.
    """

    keys: np.ndarray
    offsets: Int[Tensor, " answers+1"]
    sums: Float[Tensor, " answer"]
    sources: np.ndarray
    starts: np.ndarray
    tables: Sequence[TokenTable]

    @classmethod
    def of(cls, tables: Sequence[TokenTable]) -> MergedTables:
        """Merge tables; of an answer that is in several, the values of the first table are taken."""
        keys = np.concatenate([np.zeros((0, DIGEST_BYTES), dtype=np.uint8), *(table.keys for table in tables)])
        first = np.unique(as_strings(keys), return_index=True)[1]
        order = torch.from_numpy(first)
        none = torch.zeros(0, dtype=torch.int64)
        lengths = torch.cat([none, *(table.offsets.diff() for table in tables)])[order]
        starts = torch.cat([none, *(table.offsets[:-1] for table in tables)])[order]
        sums = torch.cat([none.float(), *(table.sums()[0] for table in tables)])[order]
        sources = np.repeat(np.arange(len(tables)), [len(table.keys) for table in tables])[first]
        return cls(keys[first], cumulative_ends(lengths), sums, sources, starts.numpy(), tables)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield the values of each answer, verified.

        Raises:
            UserError: the file of a table is damaged.
        """
        values = [table.values.numpy() for table in self.tables]
        ends = self.starts + self.offsets.diff().numpy()
        for source, start, end in zip(self.sources, self.starts, ends, strict=True):
            yield values[source][start:end]
