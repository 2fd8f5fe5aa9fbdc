"""`EncodedRows`: encoded rows in an Arrow file that is memory-mapped; a row becomes Python objects when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_lightning.data.cache.stored_sequence import StoredSequence
from dpo_lightning.data.examples import Encoded, EncodedAnswer, Origin
from dpo_lightning.data.row_sizes import RowSizes

ROWS, SIZES, DIGESTS = "rows.arrow", "sizes.npy", "digests.npy"
"""The files of a set: the rows, and two arrays that are used without reading the rows."""

MOST_OPEN = 16
"""Record batches whose arrays are kept for the next row."""


class Stored(NamedTuple):
    """Where the parts of a set are: files that are mapped, or objects in memory.

    Attributes:
        rows: an Arrow file or its content.
        sizes: the fields of `RowSizes`, int32 of shape `[fields, rows]`.
        digests: a digest for each answer, uint8 of shape `[answers, 32]`.
        files: names of the files that the rows come from; rows refer to them by number.
        folder: the folder of the files; None if the parts are in memory, or their files have been removed.
    """

    rows: Any
    sizes: np.ndarray[Any, Any]
    digests: np.ndarray[Any, Any]
    files: tuple[str, ...]
    folder: Path | None = None


class EncodedRows(StoredSequence[Encoded]):
    """The rows of a set in their order, as instances of one class.

    Attributes:
        sizes: the lengths of all rows.
        answer_digests: a digest of each answer with its prompt, `[answers, 32]`, in the order of rows, then answers.
        answer_counts: number of answers of each row, `[rows]`.
    """

    def __init__(self, stored: Stored, kind: type[Encoded]) -> None:
        """Open a set.

        Args:
            stored: its parts.
            kind: the class of the rows.

        Raises:
            OSError, ValueError: a part is not what it should be.
        """
        import pyarrow

        self.stored, self._kind = stored, kind
        self._reader = pyarrow.ipc.open_file(stored.rows)
        self._per_batch = int((self._reader.schema.metadata or {})[b"rows_per_batch"])
        self._open: dict[int, _Batch] = {}
        self.sizes = RowSizes(*stored.sizes)
        self.answer_digests, self.answer_counts = stored.digests, self.sizes.counts
        batches = -(-len(self) // self._per_batch)
        if self._reader.num_record_batches != batches or len(stored.digests) != int(self.answer_counts.sum()):
            raise ValueError("the parts of the set are not of the same rows")

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same files in another process; parts that have no files are copied."""
        if self.stored.folder is not None:
            return map_rows, (self.stored.folder, self.stored.files, self._kind)
        rows = self.stored.rows
        if hasattr(rows, "seek"):
            rows.seek(0)
            rows = rows.read()
        copied = (bytes(rows), np.array(self.stored.sizes), np.array(self.stored.digests), self.stored.files)
        return EncodedRows, (Stored(*copied), self._kind)

    def __len__(self) -> int:
        return len(self.sizes.prompts)

    def read(self, place: int) -> Encoded:
        """Read a row as a new object."""
        number, place = divmod(place, self._per_batch)
        return self._get_batch(number).read(place, self._kind, self.stored.files)

    def __iter__(self) -> Iterator[Encoded]:
        for number in range(self._reader.num_record_batches):
            batch = _Batch(self._reader.get_batch(number))
            for place in range(len(batch.weights)):
                yield batch.read(place, self._kind, self.stored.files)

    def detach(self) -> None:
        """Prepare for the removal of the files, which exist as long as they are mapped."""
        self.stored = self.stored._replace(folder=None)

    def read_prompt(self, index: int) -> Any:
        """The text or messages of a row's prompt; None in a set that is stored without them."""
        number, place = divmod(range(len(self))[index], self._per_batch)
        text = self._reader.get_batch(number).column("prompt")[place].as_py()
        return None if text is None else json.loads(text)

    def _get_batch(self, number: int) -> _Batch:
        if number not in self._open:
            if len(self._open) == MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[number] = _Batch(self._reader.get_batch(number))
        return self._open[number]


def map_rows(folder: Path, files: Sequence[str], kind: type[Encoded]) -> EncodedRows:
    """Map the files of a set, which takes the same time for any number of rows.

    Args:
        folder: the folder of the set.
        files: names of the files that the rows come from.
        kind: the class of the rows.

    Raises:
        OSError, ValueError: a file is missing or not what it should be.
    """
    import pyarrow

    sizes, digests = (np.load(folder / name, mmap_mode="r") for name in (SIZES, DIGESTS))
    return EncodedRows(Stored(pyarrow.memory_map(str(folder / ROWS)), sizes, digests, tuple(files), folder), kind)


class _Batch:
    """The columns of a record batch as arrays that share its memory."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.weights = batch.column("weight").to_numpy()
        self.files, self.lines = batch.column("file").to_numpy(), batch.column("line").to_numpy()
        self.nth = batch.column("nth").to_numpy()
        self.prompts = _List(batch.column("prompt_ids"))
        self.answers = _List(batch.column("answer_ids"))
        self.scored = _List(batch.column("scored"))
        self.lengths = _List(batch.column("lengths"))
        self.cut = _List(batch.column("cut"))
        self.own = batch.column("own")

    def read(self, place: int, kind: type[Encoded], files: Sequence[str]) -> Encoded:
        """Make the object of a row."""
        ids, scored = self.answers[place], self.scored[place]
        answers, start = [], 0
        for length, cut in zip(self.lengths[place], self.cut[place], strict=True):
            answers.append(EncodedAnswer(ids[start : start + length], scored[start : start + length], cut))
            start += length
        names = kind.annotations()
        own = json.loads(self.own[place].as_py()) if names else ()
        origin = Origin(files[self.files[place]], int(self.lines[place]), int(self.nth[place]))
        named = dict(zip(names, map(freeze, own), strict=True))
        return kind(origin, self.prompts[place], tuple(answers), float(self.weights[place]), **named)


class _List:
    """A column of lists."""

    def __init__(self, column: Any) -> None:
        self.offsets = column.offsets.to_numpy()
        self.values = column.values

    def __getitem__(self, place: int) -> list[Any]:
        start, end = self.offsets[place : place + 2].tolist()
        # Truth values are stored as bits, which are converted row by row: the column would take eight times the memory.
        found: list[Any] = self.values.slice(start, end - start).to_numpy(zero_copy_only=False).tolist()
        return found


def freeze(value: Any) -> Any:
    """Lists as tuples: rows have no lists besides those of token ids."""
    return tuple(map(freeze, value)) if isinstance(value, list) else value
