"""Output streams that are closed, full or read by nobody: results in files do not depend on them."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class LossyStream:
    """A stream whose failures are ignored from the first one on: what is written afterwards is lost."""

    def __init__(self, stream: Any, report: bool = False) -> None:
        """Wrap a stream.

        Args:
            stream: the stream.
            report: whether to report the first failure on stderr.
        """
        self._stream, self._report = stream, report

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's."""
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Let the stream write to nowhere, since what is buffered would fail again and again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._report:
            print(f"warning: stdout cannot be written ({error.strerror}); the command goes on", file=sys.stderr)


@contextmanager
def surviving_streams(*, stdout: bool) -> Iterator[None]:
    """Let a command go on where stderr cannot be written, and with `stdout` also where stdout cannot.

    A stream that was closed before the command began is replaced by one that leads nowhere.
    """
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        out, err = (nowhere if stream is None else stream for stream in before)
        sys.stderr = LossyStream(err)
        sys.stdout = LossyStream(out, report=True) if stdout else out
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def save_traceback() -> str:
    """Write the traceback of the current exception into a file, in the folder of temporary files or this one.

    Returns:
        the file's name; "the traceback above" if it could be written to stderr only.
    """
    for folder in (None, os.curdir):
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix="dpo_lightning-", suffix=".log", delete=False, encoding="utf-8", dir=folder
            ) as file:
                traceback.print_exc(file=file)
                return file.name
        except OSError:  # no such folder, or none that can be written
            continue
    traceback.print_exc()
    return "the traceback above"
