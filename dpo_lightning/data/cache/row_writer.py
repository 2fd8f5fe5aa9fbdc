"""`RowWriter`: writes encoded rows one by one into the files that `EncodedRows` maps."""

from __future__ import annotations

import json
import mmap
import tempfile
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lightning.data.cache.cache_folder import report_storage
from dpo_lightning.data.cache.encoded_rows import (
    DIGESTS,
    ROWS,
    SIZES,
    EncodedRows,
    Stored,
    freeze,
    make_schema,
    map_rows,
)
from dpo_lightning.data.encoding.digests import DIGEST_BYTES, answer_digest
from dpo_lightning.data.examples import Encoded, Text
from dpo_lightning.data.row_sizes import RowSizes, measure_row

ROWS_PER_BATCH = 128
"""Rows of a record batch: as many are in memory before they are written."""


class RowWriter:
    """Collects rows into record batches; in memory are one batch, and some 100 bytes for each row.

    Attributes:
        files: the names of the files that rows come from, by the number that rows have in their place.
    """

    def __init__(
        self, folder: Path | None, kind: type[Encoded], *, prompts: bool = False, temporary: bool = False
    ) -> None:
        """Open the files.

        Args:
            folder: where they are written, which does not exist; None keeps them in memory.
            kind: the class of the rows.
            prompts: whether the text of each row's prompt is stored too.
            temporary: without a folder, whether the rows are in an unnamed file in the folder for temporary files
                (`TMPDIR`), which is gone when the process ends, however it ends.

        Raises:
            StorageError: a file cannot be written.
        """
        import pyarrow

        self._folder, self._kind, self._prompts = folder, kind, prompts
        self._schema = make_schema(ROWS_PER_BATCH)
        with report_storage():
            self._file = tempfile.TemporaryFile() if temporary else None  # noqa: SIM115 - open until it is mapped
            if folder is not None:
                folder.mkdir()
                self._sink = pyarrow.OSFile(str(folder / ROWS), "wb")
            elif self._file is not None:
                self._sink = pyarrow.PythonFile(self._file, "w")
            else:
                self._sink = pyarrow.BufferOutputStream()
            self._writer = pyarrow.ipc.new_file(self._sink, self._schema)
        self._batch = _Columns()
        self._sizes, self._digests = array("i"), bytearray()
        self._numbers: dict[str, int] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that rows come from; rows refer to them by number."""
        return tuple(self._numbers)

    def append(self, row: Encoded, prompt: Text | None = None) -> None:
        """Write a row.

        Args:
            row: the row.
            prompt: the text of its prompt.

        Raises:
            StorageError: the file cannot be written.
            TypeError: a field of the row's kind is not plain data.
        """
        number = self._numbers.setdefault(row.origin.file, len(self._numbers))
        text = json.dumps(prompt, default=str) if self._prompts else None
        self._batch.append(row, number, write_own_fields(row), text)
        self._sizes.extend(measure_row(row))
        for answer in row.answers:
            self._digests += answer_digest(row.prompt_ids, answer)
        if len(self._batch.weights) == ROWS_PER_BATCH:
            self._flush()

    def close(self) -> EncodedRows:
        """Write what is left, and open the rows.

        Raises:
            StorageError: a file cannot be written.
        """
        if self._batch.weights:
            self._flush()
        sizes = np.array(self._sizes, np.int32).reshape(-1, len(RowSizes._fields)).T.copy()
        digests = np.frombuffer(self._digests, np.uint8).reshape(-1, DIGEST_BYTES)
        with report_storage():
            self._writer.close()
            if self._folder is None:
                return EncodedRows(Stored(self._get_content(), sizes, digests, self.files), self._kind)
            self._sink.close()
            np.save(self._folder / SIZES, sizes)
            np.save(self._folder / DIGESTS, digests)
            return map_rows(self._folder, self.files, self._kind)

    def _get_content(self) -> Any:
        """The content of a file without a name, mapped, or of the memory."""
        import pyarrow

        if self._file is None:
            return self._sink.getvalue()
        with self._file as file:
            file.flush()
            return pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _flush(self) -> None:
        with report_storage():
            self._writer.write_batch(self._batch.build(self._schema))
        self._batch = _Columns()


class _Columns:
    """The values of a record batch, by column; lists are stored one after the other, with their ends."""

    def __init__(self) -> None:
        self.prompt_ids, self.answer_ids, self.scored = array("i"), array("i"), bytearray()
        self.lengths, self.cut = array("i"), bytearray()
        self.ends: tuple[array[int], ...] = tuple(array("i", [0]) for _ in range(3))
        self.weights, self.lines = array("d"), array("q")
        self.files, self.nth = array("i"), array("i")
        self.own: list[str | None] = []
        self.prompts: list[str | None] = []

    def append(self, row: Encoded, file: int, own: str | None, prompt: str | None) -> None:
        """Append a row, whose file has a number."""
        self.prompt_ids.extend(row.prompt_ids)
        for answer in row.answers:
            self.answer_ids.extend(answer.ids)
            self.scored += bytes(answer.scored)
            self.lengths.append(len(answer.ids))
            self.cut.append(answer.cut)
        values = self.prompt_ids, self.answer_ids, self.lengths
        for ends, column in zip(self.ends, values, strict=True):
            ends.append(len(column))
        self.weights.append(row.weight)
        self.files.append(file)
        self.lines.append(row.origin.line)
        self.nth.append(row.origin.nth)
        self.own.append(own)
        self.prompts.append(prompt)

    def build(self, schema: Any) -> Any:
        """Build the record batch."""
        import pyarrow

        def make(values: Any, dtype: Any) -> Any:
            return pyarrow.array(np.frombuffer(values, dtype))

        prompt_ends, answer_ends, length_ends = (make(ends, np.int32) for ends in self.ends)
        lists = pyarrow.ListArray.from_arrays
        columns = [
            lists(prompt_ends, make(self.prompt_ids, np.int32)),
            lists(answer_ends, make(self.answer_ids, np.int32)),
            lists(answer_ends, make(self.scored, np.bool_)),
            lists(length_ends, make(self.lengths, np.int32)),
            lists(length_ends, make(self.cut, np.bool_)),
            make(self.weights, np.float64),
            make(self.files, np.int32),
            make(self.lines, np.int64),
            make(self.nth, np.int32),
            pyarrow.array(self.own, pyarrow.string()),
            pyarrow.array(self.prompts, pyarrow.string()),
        ]
        return pyarrow.record_batch(columns, schema=schema)


def write_own_fields(row: Encoded) -> str | None:
    """Write the fields that a row's kind adds as a JSON list; None for a kind that adds none.

    Raises:
        TypeError: a field would not be the same when it is read again.
    """
    names = row.annotations()
    if not names:
        return None
    values = [getattr(row, name) for name in names]
    text = json.dumps(values)
    if list(map(freeze, json.loads(text))) != values:
        raise TypeError(f"a field of {type(row).__name__} is not a number, text, True, None or a tuple of these")
    return text
