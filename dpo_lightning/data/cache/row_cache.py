"""`RowCache`: a folder of encoded sets, each under a key of all that it depends on, built by one process for all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dpo_lightning.atomic_files import sync
from dpo_lightning.data.cache.build_lock import BuildLock
from dpo_lightning.data.cache.cache_folder import MANIFEST, PARTIAL, measure_folder, report_storage
from dpo_lightning.data.cache.encoded_rows import DIGESTS, ROWS, SIZES, EncodedRows, map_rows
from dpo_lightning.data.cache.file_digests import FileDigests, hash_file
from dpo_lightning.data.examples import Encoded
from dpo_lightning.log import logger
from dpo_lightning.terminal import quote

FORMAT = 1
"""Version of the layout of an entry; entries of other versions have other keys, and are not opened."""

KEY_CHARS = 24
"""Hexadecimal characters of each half of a key."""


@dataclass(frozen=True)
class Key:
    """What an entry depends on.

    Attributes:
        rows: a digest of the files and of how they are read.
        tokens: a digest of the tokenizer and of how rows are encoded.
    """

    rows: str
    tokens: str

    @property
    def name(self) -> str:
        """The name of the entry's folder."""
        return f"{self.rows[:KEY_CHARS]}-{self.tokens[:KEY_CHARS]}"


@dataclass
class Manifest:
    """What an entry has besides its rows.

    Attributes:
        files: name of a set -> the files that its rows come from.
        lines: what was logged when the rows were read and encoded; each use logs it again.
        wrote_date: whether prompts contain the date.
        digests: path in the entry -> SHA-256 of the file.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    wrote_date: bool = False
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """Encoded sets by name, and what was logged about them."""

    rows: Mapping[str, EncodedRows]
    lines: Sequence[str]
    wrote_date: bool


class RowCache:
    """The entries of a folder. An entry never changes: it is written beside its place and renamed when it is whole."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created when the first entry is built."""
        self.folder = folder
        self.digests = FileDigests(folder)

    def has_rows(self, rows: str) -> bool:
        """Whether an entry has these files, read in the same way, whatever the tokenizer."""
        return any(self._list(rows))

    def find(self, key: Key, kind: type[Encoded]) -> Entry | None:
        """Open an entry; None if there is none. A damaged one is removed.

        Args:
            key: what it depends on.
            kind: the class of its rows.

        Raises:
            StorageError: it cannot be opened, for a reason that does not show that it is damaged.
        """
        folder = self.folder / key.name
        if not folder.is_dir():
            return None
        try:
            with report_storage():
                try:
                    entry = self._open(folder, key, kind)
                except FileNotFoundError as error:
                    raise ValueError(f"{error.filename or error} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            logger.info(f"note: the encoded rows in {quote(str(folder))} are damaged ({error}): encoding them again")
            self._remove(folder)
            return None
        self.digests.save()
        return entry

    @contextmanager
    def reserve(self, rows: str, is_done: Callable[[], bool]) -> Iterator[bool]:
        """Keep other processes from building entries with these files; they wait for the end of the block.

        Args:
            rows: the digest of the files.
            is_done: whether another process has built what this one needs.

        Yields:
            True if this process is to build it, False once `is_done`.

        Raises:
            StorageError: the folder cannot be written.
        """
        lock = BuildLock(self.folder / f"{rows[:KEY_CHARS]}.lock")
        with report_storage():
            self.folder.mkdir(parents=True, exist_ok=True)
            reserved = lock.acquire(is_done)
        if not reserved:
            yield False
            return
        try:
            for left in self.folder.glob(f".{rows[:KEY_CHARS]}-*{PARTIAL}"):  # by processes that were killed
                shutil.rmtree(left, ignore_errors=True)
            yield True
        finally:
            lock.release()

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
        files = [partial / name / part for name in manifest.files for part in (ROWS, SIZES, DIGESTS)]
        for file in files:
            sync(file)
            manifest.digests[str(file.relative_to(partial))] = hash_file(file)
        content = {"format": FORMAT, "key": asdict(key), **asdict(manifest)}
        (partial / MANIFEST).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
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

    def _list(self, rows: str) -> Iterator[Path]:
        return (path for path in self.folder.glob(f"{rows[:KEY_CHARS]}-*") if path.is_dir())

    def _open(self, folder: Path, key: Key, kind: type[Encoded]) -> Entry:
        """Open an entry, whose files are read once by each machine to compare their digests.

        Raises:
            OSError, ValueError, KeyError, TypeError: it is not whole.
        """
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["key"] != asdict(key):
            raise ValueError("it has another key")
        for path, digest in content["digests"].items():
            if self.digests.compute(folder / path) != digest:
                raise ValueError(f"{path} has changed")
        rows = {str(name): map_rows(folder / name, files, kind) for name, files in content["files"].items()}
        return Entry(rows, [str(line) for line in content["lines"]], bool(content["wrote_date"]))

    def _remove(self, folder: Path) -> None:
        """Remove a damaged entry, first from its name, so that no process opens one that is half removed."""
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        with suppress(OSError):
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
