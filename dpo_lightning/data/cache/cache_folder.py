"""What a folder of encoded rows takes on the disk, and how it is cleared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MANIFEST = "manifest.json"
"""The file of an entry that describes it; it is written last."""

PARTIAL = ".partial"
"""The suffix of the folder of an entry that is being written."""

KNOWN_DIGESTS = "files.json"
"""The file with the digests of files that have been computed; see `FileDigests`."""

OWN_FOLDER = re.compile(r"[0-9a-f]{24}-[0-9a-f]{24}|\.[0-9a-f]{24}-[0-9a-f]{24}\.[0-9a-f]{8}\.partial")
OWN_LOCK = re.compile(r"[0-9a-f]{24}\.lock")
"""Names of entries, also of unfinished ones, and of locks: nothing else is removed from the folder."""


class StorageError(Exception):
    """Encoded rows cannot be written, or a file of theirs not be opened; the message is the reason."""


class DamagedError(ValueError):
    """Encoded rows are not what was written; the message is what is wrong with them."""


@contextmanager
def report_storage() -> Iterator[None]:
    """Raise a `StorageError` for an `OSError`, which could also be that of a file of rows."""
    try:
        yield
    except OSError as error:
        raise StorageError(error.strerror or str(error)) from error


def measure_folder(folder: Path) -> tuple[int, int]:
    """The number of entries in a folder of encoded rows, and the bytes of their files, unfinished ones included."""
    if not folder.is_dir():
        return 0, 0
    own = [path for path in folder.iterdir() if OWN_FOLDER.fullmatch(path.name)]
    total = 0
    for path in (file for entry in own for file in entry.rglob("*")):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return sum((entry / MANIFEST).is_file() for entry in own), total


def clear_folder(folder: Path) -> None:
    """Remove the entries and locks of a folder, and the folder if it is empty then; mapped rows remain readable.

    Raises:
        OSError: something cannot be removed.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if OWN_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif OWN_LOCK.fullmatch(path.name):
            path.unlink(missing_ok=True)
    if [path.name for path in folder.iterdir()] == [KNOWN_DIGESTS]:
        (folder / KNOWN_DIGESTS).unlink(missing_ok=True)
        folder.rmdir()
