"""Rows of Arrow files and streams and of Feather files, each with its number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dpo_lightning.data.readers.arrow_rows import ROWS_AT_ONCE, number_rows
from dpo_lightning.data.readers.paths import read_bytes
from dpo_lightning.data.readers.source import Source

# The first bytes of each format. Feather's second version is an Arrow file.
FILE, STREAM, FEATHER = b"ARROW1", b"\xff\xff\xff\xff", b"FEA1"
STREAM_END = STREAM + bytes(4)
"""The last bytes of a stream that was written to its end; a writer may leave them out."""


def is_arrow(head: bytes) -> bool:
    """Whether a file that begins with `head` is an Arrow file or stream, or a Feather file."""
    return head.startswith((FILE, STREAM, FEATHER))


def read_arrow_rows(data: str | bytes, source: Source) -> Iterator[tuple[int, Any]]:
    """Read the rows of an Arrow or Feather file, with their numbers from 1 in place of lines.

    Args:
        data: the path of the file, or its content.
        source: the file as messages name it; receives a note if a stream has no end mark.

    Raises:
        UserError: 65 if the file is truncated or damaged.
    """
    return number_rows(_slice_batches(data, source), source.name, "Arrow")


def _slice_batches(data: str | bytes, source: Source) -> Iterator[Any]:
    """The record batches of a file in slices, each checked: damaged offsets would read beyond the buffers."""
    for batch in _read_batches(data, source):
        batch.validate(full=True)
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield batch.slice(start, ROWS_AT_ONCE)


def _read_batches(data: str | bytes, source: Source) -> Iterator[Any]:
    """Read the record batches of a file; it is mapped into memory, so that only the batch in use takes memory."""
    import pyarrow
    from pyarrow import feather, ipc

    head = read_bytes(data, len(FILE)) if isinstance(data, str) else data[: len(FILE)]
    buffer = pyarrow.memory_map(data) if isinstance(data, str) else pyarrow.BufferReader(data)
    with buffer:
        if head.startswith(FEATHER):
            yield from feather.read_table(buffer).to_batches()
        elif head.startswith(FILE):
            with ipc.open_file(buffer) as file:
                for index in range(file.num_record_batches):
                    yield file.get_batch(index)
        else:
            size = buffer.size()
            buffer.seek(max(0, size - len(STREAM_END)))
            if buffer.read() != STREAM_END:
                source.notes.append("an Arrow stream without an end mark: if rows are missing, the file was cut off")
            buffer.seek(0)
            with ipc.open_stream(buffer) as stream:
                yield from stream
