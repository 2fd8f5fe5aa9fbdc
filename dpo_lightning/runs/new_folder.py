"""`NewFolder`: an output folder that is written under a hidden name and renamed when it is complete."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_lightning.atomic_files import aside_path, move_aside, sync
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.special_files import real_path

MARK = ".written-by-dpo_lightning"
"""Marker file: a hidden folder that contains it was left by an interrupted command and may be deleted."""


class NewFolder:
    """The folder of an option such as `--out`. `check` changes nothing; `write` creates it."""

    def __init__(self, path: str, key: str) -> None:
        if "\0" in path or not path.strip() or Path(path).name in ("", ".."):
            raise UserError(ExitCode.CONFIG, Problem("not a folder name", key, path), fix=f"--{key} outputs/NAME")
        self.path, self.key = Path(path), key

    @property
    def partial(self) -> Path:
        """The hidden folder beside the target in which everything is written first."""
        return real_path(self.path).parent / f".{self.path.name}.partial"

    def check(self, sources: Collection[Path], *, fresh: bool = False) -> None:
        """Refuse a folder that is used or not writable, or that contains or is inside a source.

        Args:
            sources: folders that are read.
            fresh: whether a used folder will be moved aside.

        Raises:
            UserError: 73, the folder is refused.
        """
        try:
            self._check(sources, fresh=fresh)
        except OSError as error:
            raise self._refusal(f"the folder cannot be created: {error.strerror}") from None

    def _check(self, sources: Collection[Path], *, fresh: bool) -> None:
        own = real_path(self.path)
        for source in (real_path(folder) for folder in sources):
            if own == source or source in own.parents or own in source.parents:
                raise self._refusal(f"the folder is, contains or is inside {source}, which is read")
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise self._refusal("a file or a link has this name")
        above = next(folder for folder in own.parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise self._refusal(f"{above} is not writable")
        if self.is_used() and not fresh:
            raise self._refusal("the folder already exists", "--fresh to move it aside")
        for path in (self.partial, *([aside_path(self.path)] if self.is_used() else [])):
            over = len(os.fsencode(path.name)) - os.pathconf(above, "PC_NAME_MAX")
            if over > 0:
                raise self._refusal(f"the name is too long by {over} bytes, as it is extended to {path.name}")
        self._check_partial()

    def _check_partial(self) -> None:
        """Refuse a hidden folder with files of others: only what an interrupted command left may be deleted."""
        partial, way = self.partial, f"move {self.partial} away"
        if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
            raise self._refusal(f"the temporary folder {partial} is a file or a link", way)
        marked = (partial / MARK).is_file() and not (partial / MARK).is_symlink()
        if partial.is_dir() and any(partial.iterdir()) and not marked:
            raise self._refusal(f"the temporary folder {partial} has other files", way)

    def is_used(self) -> bool:
        """Whether the folder exists and is not empty."""
        return self.path.is_dir() and any(self.path.iterdir())

    @contextmanager
    def write(self) -> Iterator[Path]:
        """Yield a hidden folder to write in. It is renamed to the target at the end, or removed after an error.

        Raises:
            UserError: another process writes the same folder, or the hidden folder has files of others.
        """
        partial = self.partial
        parent = partial.parent
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            lock = self._claim(partial)
        except UserError:
            remove_empty_folders(made)
            raise
        try:
            clear_folder(partial)  # a killed process may have left files
            yield partial
            # First the content, then the marker, then the name: a crash leaves a marked or a complete folder.
            for entry in (*partial.iterdir(), partial):
                sync(entry)
            (partial / MARK).unlink()
            sync(partial)
            self._take_name(partial)
            sync(parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            remove_empty_folders(made)
            raise
        finally:
            os.close(lock)

    def _claim(self, partial: Path) -> int:
        """Create the hidden folder with its marker, and lock it."""
        try:
            partial.mkdir(parents=True, exist_ok=True)
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise self._refusal(f"{partial} cannot be created: {error.strerror}") from None
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been renamed or removed between opening and locking it.
            if not os.path.samestat(os.fstat(lock), partial.lstat()):
                raise BlockingIOError
            self._check_partial()
            (partial / MARK).touch()
        except OSError as error:
            os.close(lock)
            if isinstance(error, (BlockingIOError, FileNotFoundError)):  # locked, or just renamed
                raise self._refusal("another process is writing the folder", "wait until it ends") from None
            raise
        except UserError:
            os.close(lock)
            raise
        return lock

    def _take_name(self, partial: Path) -> None:
        if not self.is_used():
            partial.rename(real_path(self.path))  # an empty folder is replaced
            return
        aside = move_aside(self.path)
        partial.rename(self.path)
        logger.info(f"the old content of {self.path} is now in {aside}")

    def _refusal(self, what: str, way: str = "") -> UserError:
        fix = f"--{self.key} with another name" + (f", or {way}" if way else "")
        return UserError(ExitCode.OUTPUT, Problem(what, self.key, str(self.path)), fix=fix)


def clear_folder(folder: Path) -> None:
    """Remove everything in a folder but the marker, which shows that the folder may be deleted."""
    for entry in folder.iterdir():
        if entry.name == MARK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove_empty_folders(folders: Collection[Path]) -> None:
    """Remove those folders that are empty, the innermost first."""
    for folder in folders:
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
