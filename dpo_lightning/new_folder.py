"""A folder that a command makes: written beside its name and renamed, so that what bears the name is always whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from dpo_lightning.console import say
from dpo_lightning.errors import ExitCode, Problem, UserError


class NewFolder:
    """The folder that an option such as `--out` names. `check` changes nothing; `written` makes it."""

    def __init__(self, path: str, key: str) -> None:
        """Name the folder, and the option that it comes from."""
        if "\0" in path or not path.strip() or Path(path).name in ("", ".."):
            raise UserError(ExitCode.CONFIG, Problem("this is no folder name", key, path), fix=f"--{key} outputs/NAME")
        self.path, self.key = Path(path), key

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

    def used(self) -> bool:
        """Whether anything lies in the folder."""
        return self.path.is_dir() and any(self.path.iterdir())

    @contextmanager
    def written(self) -> Iterator[Path]:
        """A hidden folder to write in, beside the name; it gets the name where the block ends well, or is removed.

        Raises:
            UserError: another process is writing the same folder.
        """
        parent = self.path.resolve().parent
        partial = parent / f".{self.path.name}.partial"
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise self._refusal("another process is writing the folder", "wait for it") from None
        try:
            empty(partial)  # of what a process that was killed has left
            yield partial
            for entry in (*partial.iterdir(), partial):
                sync(entry)
            self._take_name(partial)
            sync(parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made:
                if folder.exists() and not any(folder.iterdir()):
                    folder.rmdir()
            raise
        finally:
            os.close(lock)

    def _take_name(self, partial: Path) -> None:
        if not self.used():
            partial.rename(self.path.resolve())  # an empty folder is replaced
            return
        aside = self.path.with_name(f"{self.path.name}.{datetime.now():%Y%m%d-%H%M%S}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}.1")
        self.path.rename(aside)
        partial.rename(self.path)
        say(f"what was in {self.path} is now in {aside}")

    def _refusal(self, what: str, way: str = "") -> UserError:
        fix = f"--{self.key} with another name" + (f", or {way}" if way else "")
        return UserError(ExitCode.OUTPUT, Problem(what, self.key, str(self.path)), fix=fix)


def empty(folder: Path) -> None:
    """Remove all that a folder holds."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def sync(path: Path) -> None:
    """Have the disk hold what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
