"""`RowCache`: a folder of encoded sets, each under a key of all that it depends on, built by one process for all."""

from __future__ import annotations

import errno
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dpo_lightning.atomic_files import sync
from dpo_lightning.data.cache.build_lock import BuildLock
from dpo_lightning.data.cache.cache_folder import MANIFEST, PARTIAL, DamagedError, measure_folder, report_storage
from dpo_lightning.data.cache.encoded_rows import EncodedRows, map_rows
from dpo_lightning.data.cache.file_digests import FileDigests, hash_file
from dpo_lightning.data.cache.manifest import (
    KEY_CHARS,
    Key,
    Manifest,
    check_regular,
    list_parts,
    read_manifest,
    write_manifest,
)
from dpo_lightning.data.examples import Encoded
from dpo_lightning.data.readers.left_out import LeftOutRow
from dpo_lightning.log import logger
from dpo_lightning.terminal import quote


@dataclass(frozen=True)
class Entry:
    """Encoded sets by name, what was logged about them, and the bad rows that were left out of each."""

    rows: Mapping[str, EncodedRows]
    lines: Sequence[str]
    wrote_date: bool
    left_out: Mapping[str, Sequence[LeftOutRow]]


class RowCache:
    """The entries of a folder. An entry never changes: it is written beside its place and renamed when it is whole."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created when the first entry is built."""
        self.folder = folder
        self.digests = FileDigests(folder)

    def has_rows(self, rows: str) -> bool:
        """Whether an entry has these files, read in the same way, whatever the tokenizer.

        Raises:
            StorageError: the folder cannot be read, or is not a folder.
        """
        with report_storage():
            return self._is_folder() and bool(self._list(rows))

    def find(self, key: Key, names: Sequence[str], kind: type[Encoded]) -> Entry | None:
        """Open an entry; None if there is none. A damaged one is removed.

        Args:
            key: what it depends on.
            names: its sets.
            kind: the class of its rows.

        Raises:
            StorageError: it cannot be opened, for a reason that does not show that it is damaged.
        """
        folder = self.folder / key.name
        if not folder.is_dir():
            return None
        try:
            with report_storage():
                entry = self._open(folder, key, names, kind)
        except DamagedError as error:
            logger.info(f"note: the encoded rows in {quote(str(folder))} are damaged ({error}): encoding them again")
            self._remove(folder)
            return None
        self.digests.save()
        return entry

    @contextmanager
    def reserve(self, rows: str, is_done: Callable[[], bool]) -> Iterator[bool]:
        """Keep other processes from building entries with these files; they wait for the end of the block.

        If this process waited for another one, which then built no entry, it builds one without waiting for further
        ones: the rows are probably faulty, and all processes would read them one after the other.

        Args:
            rows: the digest of the files.
            is_done: whether another process has built what this one needs.

        Yields:
            True if this process is to build it, False once `is_done`.

        Raises:
            StorageError: the folder cannot be written.
        """
        lock = BuildLock(self.folder / f"{rows[:KEY_CHARS]}.lock")
        made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        with report_storage():
            self.folder.mkdir(parents=True, exist_ok=True)
            before = self._list(rows)
            reserved = lock.acquire(is_done)
        if not reserved or (lock.has_waited and self._list(rows) == before):
            lock.release()
            yield reserved
            return
        try:
            for left in self.folder.glob(f".{rows[:KEY_CHARS]}-*{PARTIAL}"):  # by processes that were killed
                shutil.rmtree(left, ignore_errors=True)
            yield True
        finally:
            lock.release()
            with suppress(OSError):  # rows that are refused leave no empty folders
                for folder in made:
                    folder.rmdir()

    def make_partial(self, key: Key) -> Path:
        """Create the folder in which an entry is written.

        Raises:
            StorageError: it cannot be created.
        """
        partial = self.folder / f".{key.name}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        with report_storage():
            partial.mkdir(parents=True)
        return partial

    def publish(self, partial: Path, key: Key, manifest: Manifest) -> None:
        """Make an entry of a folder that has all its sets.

        Args:
            partial: the folder from `make_partial`.
            key: what the entry depends on.
            manifest: what belongs to it besides the rows; `digests` is filled in here.

        Raises:
            StorageError: it cannot be written.
        """
        with report_storage():
            self._publish(partial, key, manifest)

    def _publish(self, partial: Path, key: Key, manifest: Manifest) -> None:
        for path in list_parts(list(manifest.files)):
            sync(partial / path)
            manifest.digests[path] = hash_file(partial / path)
        write_manifest(partial, key, manifest)
        sync(partial / MANIFEST)
        target = self.folder / key.name
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(partial, ignore_errors=True)  # another process has built the same
            return
        sync(self.folder)
        for path, digest in manifest.digests.items():
            self.digests.add(target / path, digest)
        self.digests.save()

    def measure(self) -> tuple[int, int]:
        """The number of entries, and the bytes of all files in the folder."""
        return measure_folder(self.folder)

    def _list(self, rows: str) -> set[Path]:
        """The entries with these files."""
        return {path for path in self.folder.glob(f"{rows[:KEY_CHARS]}-*") if path.is_dir()}

    def _is_folder(self) -> bool:
        """Whether the folder exists.

        Raises:
            OSError: it cannot be examined, or is not a folder.
        """
        try:
            mode = self.folder.stat().st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")
        return True

    def _open(self, folder: Path, key: Key, names: Sequence[str], kind: type[Encoded]) -> Entry:
        """Open an entry, whose files are read once by each machine to compare their digests.

        Raises:
            DamagedError: it is not whole.
            OSError: it cannot be read.
        """
        manifest = read_manifest(folder, key, names)
        for path, digest in manifest.digests.items():
            check_regular(folder, path)
            if self.digests.compute(folder / path) != digest:
                raise DamagedError(f"{path} has changed")
        rows = {name: map_rows(folder / name, manifest.files[name], kind) for name in names}
        return Entry(rows, manifest.lines, manifest.wrote_date, manifest.left_out)

    def _remove(self, folder: Path) -> None:
        """Remove a damaged entry, first from its name, so that no process opens one that is half removed."""
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        with suppress(OSError):
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
