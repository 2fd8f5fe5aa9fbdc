"""Rows of Arrow files and streams and of Feather files, each with its number."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from typing import IO, Any

from dpo_lightning.data.readers.arrow_rows import ROWS_AT_ONCE, number_rows
from dpo_lightning.data.readers.source import Source

# The first bytes of each format. Feather's second version is an Arrow file.
FILE, STREAM, FEATHER = b"ARROW1", b"\xff\xff\xff\xff", b"FEA1"
STREAM_END = STREAM + bytes(4)
"""The last bytes of a stream that was written to its end; a writer may leave them out."""


def is_arrow(head: bytes) -> bool:
    """Whether a file that begins with `head` is an Arrow file or stream, or a Feather file."""
    return head.startswith((FILE, STREAM, FEATHER))


def read_arrow_rows(file: IO[bytes], source: Source) -> Iterator[tuple[int, Any]]:
    """Read the rows of an Arrow or Feather file, with their numbers from 1 in place of lines.

    Args:
        file: the file.
        source: the file as messages name it; receives a note if a stream has no end mark.

    Raises:
        UserError: 65 if the file is truncated or damaged.
    """
    return number_rows(_slice_batches(file, source), source.name, "Arrow")


def _slice_batches(file: IO[bytes], source: Source) -> Iterator[Any]:
    """The record batches of a file in slices, each batch checked: damaged offsets would read beyond the buffers.

    A file on the disk is mapped into memory. Its pages that were read are released, as they count as memory of the
    process.
    """
    mapped = None if isinstance(file, io.BytesIO) else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    released = getattr(mmap, "MADV_DONTNEED", None)
    for batch in _read_batches(file.read() if mapped is None else mapped, source):
        batch.validate(full=True)
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            if mapped is not None and released is not None:
                mapped.madvise(released)
            yield batch.slice(start, ROWS_AT_ONCE)


def _read_batches(data: bytes | mmap.mmap, source: Source) -> Iterator[Any]:
    """Read the record batches of a file; where it is mapped into memory, they refer to its pages."""
    import pyarrow
    from pyarrow import feather, ipc

    buffer = pyarrow.BufferReader(pyarrow.py_buffer(data))
    with buffer:
        if data[: len(FEATHER)] == FEATHER:
            yield from feather.read_table(buffer).to_batches()
        elif data[: len(FILE)] == FILE:
            with ipc.open_file(buffer) as file:
                for index in range(file.num_record_batches):
                    yield file.get_batch(index)
        else:
            if data[-len(STREAM_END) :] != STREAM_END:
                source.notes.append("an Arrow stream without an end mark: if rows are missing, the file was cut off")
            with ipc.open_stream(buffer) as stream:
                yield from stream
