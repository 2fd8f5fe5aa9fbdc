"""Files that are complete or absent: written beside their place, forced to the disk, and renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any


@contextmanager
def open_atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a hidden file beside `path` and give it that name when the block ends without an error.

    An interrupted process leaves at most `.NAME.*.partial`; `path` is either the old file or the whole new one.

    Args:
        path: the file; its folder exists.
        mode: `w` for UTF-8 text, `wb` for bytes.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)  # the new name itself is on the disk only when its folder is


def sync(path: Path) -> None:
    """Force a file or the entries of a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def aside_path(path: Path) -> Path:
    """The name under which `move_aside` keeps a folder: its own with the date and time appended."""
    return path.with_name(f"{path.name}.{datetime.now():%Y%m%d-%H%M%S}")


def move_aside(path: Path) -> Path:
    """Rename a folder that is in the way, and return its new name."""
    aside = aside_path(path)
    while aside.exists():  # moved aside twice within a second
        aside = aside.with_name(f"{aside.name}.1")
    path.rename(aside)
    return aside
