"""`SpilledList`: a list on the disk, so that rows may be read several times without being kept in memory."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import IO, Any, TypeVar

from dpo_lightning.data.cache.stored_sequence import StoredSequence
from dpo_lightning.log import logger

T = TypeVar("T")

BUFFER = 8 << 20
"""Bytes that are kept in memory before they are written; a small set is never written."""

BLOCK = 1 << 20
"""Bytes that an iteration reads at once."""


class SpilledList(StoredSequence[T]):
    """A sequence to which items are only appended; 8 bytes of memory per item, and the last `BUFFER` bytes.

    Items are pickled into an unnamed file in the folder for temporary files (`TMPDIR`), which is gone when the process
    ends, however it ends. If the file cannot be written, as on a full disk,
    the items are kept in memory.
    """

    def __init__(self, items: Iterable[T] = (), buffer: int = BUFFER) -> None:
        """Append the items.

        Args:
            items: the first items.
            buffer: bytes that are kept in memory before they are written.
        """
        self._limit = buffer
        self._ends = array("q", [0])
        self._file: IO[bytes] | None = None
        self._written = 0
        self._tail = bytearray()
        for item in items:
            self.append(item)

    @property
    def folder(self) -> str:
        """The folder for temporary files."""
        return tempfile.gettempdir()

    def append(self, item: T) -> None:
        """Append an item, which must be picklable."""
        self._tail += pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        self._ends.append(self._written + len(self._tail))
        if len(self._tail) > self._limit:
            self._spill()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def read(self, place: int) -> T:
        """Read an item as a new copy."""
        item: T = pickle.loads(self._read_bytes(self._ends[place], self._ends[place + 1]))
        return item

    def __iter__(self) -> Iterator[T]:
        """Read the items one after the other, many with each access to the file."""
        start = 0
        while start < len(self):
            first, stop = self._ends[start], start + 1
            while stop < len(self) and self._ends[stop + 1] - first <= BLOCK:
                stop += 1
            block = memoryview(self._read_bytes(first, self._ends[stop]))
            for place in range(start, stop):
                yield pickle.loads(block[self._ends[place] - first : self._ends[place + 1] - first])
            start = stop

    def _read_bytes(self, start: int, end: int) -> bytes:
        """Read bytes of the pickled items, which are in the file or in memory."""
        if start >= self._written or self._file is None:
            return bytes(self._tail[start - self._written : end - self._written])
        if end > self._written:
            return self._read_bytes(start, self._written) + self._read_bytes(self._written, end)
        return os.pread(self._file.fileno(), end - start, start)

    def _spill(self) -> None:
        """Write what is in memory; on an error, keep it there, and all that follows."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the list
            view: Any = memoryview(self._tail)
            done = 0
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done : done + (1 << 24)], self._written + done)
        except OSError as error:
            logger.info(f"note: rows are kept in memory: {self.folder} cannot be written ({error.strerror})")
            self._limit = 1 << 62
            return
        self._written += len(self._tail)
        self._tail = bytearray()
