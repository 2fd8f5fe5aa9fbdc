"""A folder that a command makes: written beside its name and renamed, so that what bears the name is always whole."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

MARK = ".written-by-dpo_lightning"
"""A file in a folder that is being written: what lies beside it may be removed."""


class NewFolder:
    """The folder that an option such as `--out` names. `check` changes nothing; `written` makes it."""

    def __init__(self, path: str, key: str) -> None:
        """Name the folder, and the option that it comes from."""
        if "\0" in path or not path.strip() or Path(path).name in ("", ".."):
            raise UserError(ExitCode.CONFIG, Problem("this is no folder name", key, path), fix=f"--{key} outputs/NAME")
        self.path, self.key = Path(path), key

    @property
    def partial(self) -> Path:
        """Where it is written first."""
        return self.path.resolve().parent / f".{self.path.name}.partial"

    @property
    def aside(self) -> Path:
        """Where what bears the name now goes, if nothing is there."""
        return self.path.with_name(f"{self.path.name}.{datetime.now():%Y%m%d-%H%M%S}")

    def check(self, sources: Collection[Path], *, fresh: bool = False) -> None:
        """Refuse a folder that is used, that cannot be written, or that holds or lies in what is read.

        Args:
            sources: folders that are read.
            fresh: a used folder is going to be moved aside.

        Raises:
            UserError: with exit code 73 and the ways on.
        """
        try:
            self._check(sources, fresh=fresh)
        except OSError as error:
            raise self._refusal(f"the folder cannot be made: {error.strerror}") from None

    def _check(self, sources: Collection[Path], *, fresh: bool) -> None:
        own = self.path.resolve()
        for source in (folder.resolve() for folder in sources):
            if own == source or source in own.parents or own in source.parents:
                raise self._refusal(f"the folder is, holds or lies in {source}, which is read")
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise self._refusal("a file or a link has this name")
        above = next(folder for folder in own.parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise self._refusal(f"nothing can be written in {above}")
        if self.used() and not fresh:
            raise self._refusal("the folder is there already", "--fresh to move it aside")
        for path in (self.partial, *([self.aside] if self.used() else [])):
            over = len(os.fsencode(path.name)) - os.pathconf(above, "PC_NAME_MAX")
            if over > 0:
                raise self._refusal(f"the name is too long by {over} bytes: for a time it is {path.name}")
        self._check_partial()

    def _check_partial(self) -> None:
        """See that what lies where the folder is written first was left by a process that was killed."""
        partial, way = self.partial, f"move {self.partial} away"
        if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
            raise self._refusal(f"a file or a link is where it is written first: {partial}", way)
        marked = (partial / MARK).is_file() and not (partial / MARK).is_symlink()
        if partial.is_dir() and any(partial.iterdir()) and not marked:
            raise self._refusal(f"there are other files where it is written first: {partial}", way)

    def used(self) -> bool:
        """Whether anything lies in the folder."""
        return self.path.is_dir() and any(self.path.iterdir())

    @contextmanager
    def written(self) -> Iterator[Path]:
        """A hidden folder to write in, beside the name; it gets the name where the block ends well, or is removed.

        Raises:
            UserError: another process is writing the same folder, or something else is where it is written first.
        """
        partial = self.partial
        parent = partial.parent
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            lock = self._claim(partial)
        except UserError:
            remove_empty(made)
            raise
        try:
            empty(partial)  # of what a process that was killed has left
            yield partial
            for entry in (*partial.iterdir(), partial):
                sync(entry)
            (partial / MARK).unlink()
            sync(partial)
            self._take_name(partial)
            sync(parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            remove_empty(made)
            raise
        finally:
            os.close(lock)

    def _claim(self, partial: Path) -> int:
        """Make the folder, marked, and hold its lock."""
        try:
            partial.mkdir(parents=True, exist_ok=True)
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise self._refusal(f"{partial} cannot be made: {error.strerror}") from None
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock), partial.lstat()):
                raise BlockingIOError
            self._check_partial()
            (partial / MARK).touch()
        except OSError as error:
            os.close(lock)
            if isinstance(error, (BlockingIOError, FileNotFoundError)):  # locked, or just renamed
                raise self._refusal("another process is writing the folder", "wait for it") from None
            raise
        except UserError:
            os.close(lock)
            raise
        return lock

    def _take_name(self, partial: Path) -> None:
        if not self.used():
            partial.rename(self.path.resolve())  # an empty folder is replaced
            return
        aside = self.aside
        while aside.exists():
            aside = aside.with_name(f"{aside.name}.1")
        self.path.rename(aside)
        partial.rename(self.path)
        logger.info(f"what was in {self.path} is now in {aside}")

    def _refusal(self, what: str, way: str = "") -> UserError:
        fix = f"--{self.key} with another name" + (f", or {way}" if way else "")
        return UserError(ExitCode.OUTPUT, Problem(what, self.key, str(self.path)), fix=fix)


def empty(folder: Path) -> None:
    """Remove all that a folder holds but the mark, without which what is left would be no one's."""
    for entry in folder.iterdir():
        if entry.name == MARK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove_empty(folders: Collection[Path]) -> None:
    """Remove those in which nothing lies, the innermost first."""
    for folder in folders:
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def sync(path: Path) -> None:
    """Have the disk hold what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
