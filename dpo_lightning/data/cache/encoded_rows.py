"""`EncodedRows`: encoded rows in an Arrow file that is memory-mapped; a row becomes Python objects when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_lightning.data.cache.cache_folder import DamagedError
from dpo_lightning.data.cache.stored_sequence import StoredSequence
from dpo_lightning.data.encoding.digests import DIGEST_BYTES
from dpo_lightning.data.examples import Encoded, EncodedAnswer, Origin
from dpo_lightning.data.row_sizes import RowSizes
from dpo_lightning.errors import excerpt

PARTS = ROWS, SIZES, DIGESTS = "rows.arrow", "sizes.npy", "digests.npy"
"""The files of a set: the rows, and two arrays that are used without reading the rows."""

BATCH_SIZE = "rows_per_batch"
"""The name in the metadata of the Arrow file."""

MAX_OPEN_BATCHES = 16
"""Record batches whose arrays are kept for the next row."""


class Stored(NamedTuple):
    """Where the parts of a set are: files that are mapped, or objects in memory.

    Attributes:
        rows: an Arrow file; its content without a folder.
        sizes: the fields of `RowSizes`, int32 of shape `[fields, rows]`.
        digests: a digest for each answer, uint8 of shape `[answers, 32]`.
        files: names of the files that the rows come from; rows refer to them by number.
        folder: the folder of the files; None if the parts are in memory, or in files without a name.
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
            DamagedError: the parts are not those of a set.
        """
        import pyarrow

        self.stored, self._kind = stored, kind
        check_array(SIZES, stored.sizes, np.int32, 0, len(RowSizes._fields))
        check_array(DIGESTS, stored.digests, np.uint8, 1, DIGEST_BYTES)
        self._reader = pyarrow.ipc.open_file(stored.rows)
        self._per_batch = read_batch_size(self._reader.schema)
        self._open: dict[int, _RecordBatch] = {}
        self.sizes = RowSizes(*stored.sizes)
        self.answer_digests, self.answer_counts = stored.digests, self.sizes.counts
        batches = -(-len(self) // self._per_batch)
        if self._reader.num_record_batches != batches or len(stored.digests) != int(self.answer_counts.sum()):
            raise DamagedError("the parts of the set are not of the same rows")

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same files in another process; parts that have no files are copied."""
        if self.stored.folder is not None:
            return map_rows, (self.stored.folder, self.stored.files, self._kind)
        copied = (
            bytes(self.stored.rows),
            np.array(self.stored.sizes),
            np.array(self.stored.digests),
            self.stored.files,
        )
        return EncodedRows, (Stored(*copied), self._kind)

    def __len__(self) -> int:
        return len(self.sizes.prompts)

    def read(self, place: int) -> Encoded:
        """Read a row as a new object."""
        number, place = divmod(place, self._per_batch)
        return self._get_batch(number).read(place, self._kind, self.stored.files)

    def __iter__(self) -> Iterator[Encoded]:
        for number in range(self._reader.num_record_batches):
            batch = _RecordBatch(self._reader.get_batch(number))
            for place in range(len(batch.weights)):
                yield batch.read(place, self._kind, self.stored.files)

    def read_prompt(self, index: int) -> Any:
        """The text or messages of a row's prompt; None in a set that is stored without them."""
        number, place = divmod(range(len(self))[index], self._per_batch)
        text = self._reader.get_batch(number).column("prompt")[place].as_py()
        return None if text is None else json.loads(text)

    def _get_batch(self, number: int) -> _RecordBatch:
        if number not in self._open:
            if len(self._open) == MAX_OPEN_BATCHES:
                self._open.pop(next(iter(self._open)))
            self._open[number] = _RecordBatch(self._reader.get_batch(number))
        return self._open[number]


def map_rows(folder: Path, files: Sequence[str], kind: type[Encoded]) -> EncodedRows:
    """Map the files of a set, which takes the same time for any number of rows.

    Args:
        folder: the folder of the set.
        files: names of the files that the rows come from.
        kind: the class of the rows.

    Raises:
        DamagedError: a file is not that of a set.
        OSError: a file is missing or cannot be read.
    """
    import pyarrow

    try:
        sizes, digests = (np.load(folder / name, mmap_mode="r") for name in (SIZES, DIGESTS))
        return EncodedRows(Stored(pyarrow.memory_map(str(folder / ROWS)), sizes, digests, tuple(files), folder), kind)
    except DamagedError:
        raise
    except Exception as error:  # numpy and pyarrow raise errors of a dozen classes for files of other content
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own errors have no number
            raise
        raise DamagedError(f"{folder.name} is not a set of rows: {excerpt(error)}") from error


def check_array(name: str, array: np.ndarray[Any, Any], dtype: type[np.generic], axis: int, size: int) -> None:
    """Check that an array has two axes, one of them of a given size, and a type.

    Raises:
        DamagedError: it is another one.
    """
    if array.dtype != dtype or array.ndim != 2 or array.shape[axis] != size:
        raise DamagedError(f"{name} has the type {array.dtype} and the shape {list(array.shape)}")


def make_schema(rows_per_batch: int) -> Any:
    """The columns of the Arrow file, whose record batches all have this number of rows except for the last one."""
    import pyarrow

    ids, flags = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.bool_())
    columns = {
        "prompt_ids": ids,
        "answer_ids": ids,  # of all answers, one after the other
        "scored": flags,
        "lengths": ids,  # of each answer
        "cut": flags,
        "weight": pyarrow.float64(),
        "file": pyarrow.int32(),
        "line": pyarrow.int64(),
        "nth": pyarrow.int32(),
        "own": pyarrow.string(),  # the fields that the kind of the row adds, as a JSON list
        "prompt": pyarrow.string(),  # text or messages as JSON, only of held-out rows
    }
    return pyarrow.schema(list(columns.items()), metadata={BATCH_SIZE: str(rows_per_batch)})


def read_batch_size(schema: Any) -> int:
    """The number of rows of each record batch.

    Raises:
        DamagedError: the columns are not those of `make_schema`.
    """
    text = (schema.metadata or {}).get(BATCH_SIZE.encode(), b"")
    size = int(text) if text.isdigit() and len(text) < 10 else 0
    if size < 1 or not schema.equals(make_schema(size), check_metadata=True):
        raise DamagedError(f"{ROWS} has other columns")
    return size


class _RecordBatch:
    """The columns of a record batch as arrays that share its memory."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.weights = batch.column("weight").to_numpy()
        self.files, self.lines = batch.column("file").to_numpy(), batch.column("line").to_numpy()
        self.nth = batch.column("nth").to_numpy()
        self.prompts = _ListColumn(batch.column("prompt_ids"))
        self.answers = _ListColumn(batch.column("answer_ids"))
        self.scored = _ListColumn(batch.column("scored"))
        self.lengths = _ListColumn(batch.column("lengths"))
        self.cut = _ListColumn(batch.column("cut"))
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


class _ListColumn:
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
