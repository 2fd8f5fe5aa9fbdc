"""What a folder of encoded rows takes on the disk, and how it is cleared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MANIFEST = "manifest.json"
"""The file of an entry that describes it; it is written last."""

PARTIAL = ".partial"
"""The suffix of the folder of an entry that is being written."""

MEMO = "files.json"
"""The file that remembers digests of files."""


class StorageError(Exception):
    """Encoded rows cannot be written, or a file of theirs not be opened; the message is the reason."""


@contextmanager
def report_storage() -> Iterator[None]:
    """Raise a `StorageError` for an `OSError`, which could also be that of a file of rows."""
    try:
        yield
    except OSError as error:
        raise StorageError(error.strerror or str(error)) from error


def measure_folder(folder: Path) -> tuple[int, int]:
    """The number of entries in a folder of encoded rows, and the bytes of all files in it."""
    if not folder.is_dir():
        return 0, 0
    entries = sum((path / MANIFEST).is_file() for path in folder.iterdir() if path.is_dir())
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return entries, total


def clear_folder(folder: Path) -> None:
    """Remove all entries of a folder, and what is remembered of files; runs that use an entry keep it until they end.

    Raises:
        OSError: something cannot be removed.
    """
    for path in [*folder.glob("*-*/"), *folder.glob(f".*{PARTIAL}/")]:
        if path.name.endswith(PARTIAL) or (path / MANIFEST).is_file():
            shutil.rmtree(path)
    for path in [*folder.glob("*.lock"), folder / MEMO]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
