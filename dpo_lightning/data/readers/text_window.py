"""A window that slides over the text of a file, so that a file of any size takes the memory of one part of it."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import IO

from dpo_lightning.errors import ExitCode, Problem, UserError

CHUNK_BYTES = 1 << 20
"""Bytes of a file that are read and decoded at once."""


class TextWindow:
    """The part of a text that is in memory: parsers read it, let it grow, and drop what they have parsed.

    Attributes:
        text: the part; empty at first.
        ended: whether nothing follows the part. It is only set once the window could not grow any more.
    """

    __slots__ = ("_chunks", "ended", "text")

    def __init__(self, chunks: Iterable[str]) -> None:
        """Create an empty window over a text that is given in pieces of any size."""
        self._chunks = iter(chunks)
        self.text = ""
        self.ended = False

    def grow(self, start: int = 0) -> None:
        """Drop the characters before `start`, and at least double the others, unless the text ends before.

        A row that is longer than the window is parsed again after each growth: doubling keeps its cost linear.
        """
        parts = [self.text[start:]]
        missing = max(1, len(parts[0]))
        while missing > 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.ended = True
                break
            parts.append(chunk)
            missing -= len(chunk)
        self.text = "".join(parts)

    def fill(self, size: int) -> None:
        """Grow until the part has `size` characters or the text ends."""
        while len(self.text) < size and not self.ended:
            self.grow()

    def read_all(self) -> str:
        """Grow to the end of the text, and return all that was not dropped."""
        if not self.ended:
            self.text = "".join((self.text, *self._chunks))
            self.ended = True
        return self.text


def is_plain_utf8(file: IO[bytes]) -> bool:
    """Whether a file is UTF-8 from its first to its last byte, and has no NUL, which may belong to UTF-16 or UTF-32."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    complete = True  # whether the bytes so far end with a whole character
    file.seek(0)
    try:
        while chunk := file.read(CHUNK_BYTES):
            if b"\0" in chunk:
                return False
            if not complete or not chunk.isascii():
                decoder.decode(chunk)
                complete = not decoder.getstate()[0]
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def decode_chunks(file: IO[bytes], name: str) -> Iterator[str]:
    """Decode a file that `is_plain_utf8`, from its first byte and without its byte order mark.

    Args:
        file: the file.
        name: the file as messages print it.

    Raises:
        UserError: 74 if the file has changed since and is not UTF-8 any more.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    file.seek(0)
    try:
        while chunk := file.read(CHUNK_BYTES):
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(
            ExitCode.IO,
            Problem("the file changed while it was read", where=name),
            fix="run the command again when no other program writes the file",
        ) from None
