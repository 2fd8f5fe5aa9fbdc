"""`FileDigests`: digests of files by content, remembered so that a file that has not changed is not read again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.data.cache.cache_folder import KNOWN_DIGESTS
from dpo_lightning.json_files import read_json

SETTLED_SECONDS = 1.0
"""Time since the last change after which a file is not changed again without another time of change."""

MAX_FILES = 10_000
"""Files that are remembered."""


class FileDigests:
    """SHA-256 digests of files; one is computed again if the file's inode, size or times differ from those remembered.

    The time of change (ctime) is compared too: unlike the time of modification, no program can set it back. On a file
    system without it, such as sshfs, a file that was changed to another one of the same size and time is not noticed.
    """

    def __init__(self, folder: Path) -> None:
        """Load what is remembered in a folder; nothing if there is none or it cannot be read."""
        self._path = folder / KNOWN_DIGESTS
        self._known: dict[str, tuple[list[int], str]] = {}
        self._changed = False
        with suppress(OSError, ValueError, TypeError, AttributeError):
            stored = read_json(self._path)
            self._known = {str(name): (list(state), str(digest)) for name, (state, digest) in stored.items()}

    def compute(self, path: Path) -> str:
        """The digest of a file, computed or remembered.

        Raises:
            OSError: the file cannot be read.
        """
        name, state = str(path.absolute()), read_state(path)
        known, digest = self._known.get(name, ([], ""))
        if known == state:
            return digest
        now = time.time()
        digest = hash_file(path)
        # A file that is changed while it is read, or soon after, may keep its times.
        if read_state(path) == state and now - max(state[2:]) / 1e9 > SETTLED_SECONDS:
            self._remember(name, state, digest)
        return digest

    def add(self, path: Path, digest: str) -> None:
        """Remember the digest of a file that this process has just written and that nothing changes any more."""
        self._remember(str(path.absolute()), read_state(path), digest)

    def save(self) -> None:
        """Write what is remembered; does nothing if the folder cannot be written."""
        if not self._changed:
            return
        kept = dict(list(self._known.items())[-MAX_FILES:])
        with suppress(OSError), open_atomic(self._path) as file:
            json.dump(kept, file)
        self._changed = False

    def _remember(self, name: str, state: list[int], digest: str) -> None:
        self._known.pop(name, None)
        self._known[name] = state, digest
        self._changed = True


def read_state(path: Path) -> list[int]:
    """What changes whenever a file does: inode, size in bytes, and the times of modification and change in ns."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def hash_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """The SHA-256 of the names and contents of small files, such as modules of a package."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {hash_file(path)}\n".encode())
    return digest.hexdigest()
