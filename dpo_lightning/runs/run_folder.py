"""`RunFolder`: the folder of one run, locked by its process, never overwritten, with its `config.yaml`."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dpo_lightning.atomic_files import move_aside
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

KEY = "output_dir"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


class RunFolder:
    """The folder of `--output_dir`. `check` changes nothing; `claim` creates it and locks it."""

    def __init__(self, path: str) -> None:
        if "\0" in path or not path.strip():
            raise UserError(ExitCode.CONFIG, Problem("not a folder name", KEY, path), fix="--output_dir outputs/NAME")
        if path.startswith("~") or re.search(r"\$[\w{]|://", path) or not path.isprintable():
            raise UserError(
                ExitCode.CONFIG,
                Problem("a folder's name may not contain `~`, `$NAME`, `://` or unprintable characters", KEY, path),
                fix="write the full path (a shell expands `~` and `$NAME` outside of quotes)",
            )
        self.path = Path(path)
        self._lock: int | None = None
        self._was_used = False
        self._made: list[Path] = []
        self._before: set[Path] = set()
        self._aside: Path | None = None

    def check(self, *, fresh: bool = False, ckpt_path: str | None = None, reads: Iterable[str] = ()) -> None:
        """Refuse a folder that is in use, used, or not writable.

        Args:
            fresh: whether a used folder will be moved aside.
            ckpt_path: a checkpoint with which the run is resumed; it may be in this folder.
            reads: strings of the config; paths of models and data among them may not be moved aside.

        Raises:
            UserError: 73, the folder is refused; 64, `fresh` is not possible.
        """
        self.check_writable()
        self._was_used = self.is_used()
        if not self._was_used:
            return
        self._refuse_running()
        if fresh:
            self._check_movable(ckpt_path, reads)
        elif not self.holds(ckpt_path):
            raise self._taken_error()
        else:
            self.check_links()

    def check_links(self) -> None:
        """Refuse links that lead out of the folder, through which other files would be overwritten.

        Raises:
            UserError: there is such a link.
        """
        home = self.path.resolve()
        for folder, folders, files in os.walk(self.path):
            for link in (Path(folder, name) for name in [*folders, *files]):
                if link.is_symlink() and home not in link.resolve().parents:
                    raise UserError(
                        ExitCode.OUTPUT,
                        Problem("a link leads out of the folder, and its target would be overwritten", KEY, str(link)),
                        fix="resume in a new folder by --output_dir NAME, or remove the link",
                    )

    def check_writable(self) -> None:
        """Refuse a path that is no folder, or in which no file can be created.

        Raises:
            UserError: the path is refused.
        """
        above = self.path
        try:
            # The nearest existing folder decides whether the others can be created.
            while not above.exists() and not above.is_symlink() and above != above.parent:
                above = above.parent
            if not above.is_dir():
                raise UserError(
                    ExitCode.OUTPUT,
                    Problem(f"{above} is not a folder", KEY, str(self.path)),
                    fix="choose another --output_dir",
                )
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            raise UserError(
                ExitCode.OUTPUT,
                Problem(f"{above} is not writable: {error.strerror}", KEY, str(self.path)),
                fix="choose another --output_dir, or change the permissions",
            ) from None

    def is_used(self) -> bool:
        """Whether the folder contains anything but the lock."""
        return self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir())

    def holds(self, ckpt_path: str | None) -> bool:
        """Whether a checkpoint belongs to this folder's run, and not to one whose folder is inside it."""
        # The innermost folder above the checkpoint that has a configuration is its run's.
        home, above = self.path.resolve(), Path(ckpt_path).resolve().parents if ckpt_path is not None else ()
        return next((folder for folder in above if folder == home or (folder / CONFIG).exists()), None) == home

    def claim(self, *, fresh: bool = False) -> None:
        """Create and lock the folder; with `fresh`, move a used one aside before.

        Raises:
            UserError: the folder cannot be created, or another process uses it.
        """
        try:
            if fresh and self.is_used():
                self._move_aside()
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            # `abandon` removes what was added to it.
            self._before = set(self.path.iterdir())
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                ExitCode.OUTPUT,
                Problem(f"the folder cannot be created: {error.strerror}", KEY, str(self.path)),
                fix="choose another --output_dir",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._running_error() from None
        if self.is_used() and not self._was_used:  # another run began and ended since `check`
            raise self._taken_error()

    def release(self) -> None:
        """Unlock the folder, so that other runs may use it; a second call has no effect."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_config(self, text: str) -> None:
        """Write the run's configuration; a resumed run adds its own as `config-2.yaml` and so on."""
        target, attempt = self.path / CONFIG, 1
        while target.exists():
            attempt += 1
            target = self.path / f"config-{attempt}.yaml"
        target.write_text(text, encoding="utf-8")

    def abandon(self) -> None:
        """Restore the state before `claim`, for a run that ended before its first step."""
        added = set(self.path.iterdir()) - self._before
        if self.path / CHECKPOINTS in added:
            return
        for entry in added:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()
        for folder in self._made:
            if not any(folder.iterdir()):
                folder.rmdir()
        if self._aside is not None and not self.path.exists():
            self._aside.rename(self.path)
            logger.info(f"no step was trained: the previous run's folder was renamed back to {self.path}")

    def _move_aside(self) -> None:
        self._aside, self._was_used = move_aside(self.path), False
        logger.info(f"the old run is now {self._aside}")

    def _check_movable(self, ckpt_path: str | None, reads: Iterable[str]) -> None:
        if self.holds(ckpt_path):
            raise UserError(
                ExitCode.CONFIG,
                Problem("--fresh would move this checkpoint aside", "ckpt_path", str(ckpt_path)),
                fix="leave --fresh out to resume in the folder, or --output_dir NAME",
            )
        if self.path.name in ("", ".."):
            raise UserError(
                ExitCode.CONFIG,
                Problem("--fresh cannot rename this folder: the path does not end in a name", KEY, str(self.path)),
                fix="write a path that ends in the name, such as --output_dir outputs/NAME",
            )

        home = self.path.resolve()
        for path in reads:
            if os.access(path, os.F_OK) and home in (Path(path).resolve(), *Path(path).resolve().parents):
                raise UserError(
                    ExitCode.OUTPUT,
                    Problem("--fresh would move files that the run reads", KEY, path),
                    fix="--output_dir NAME",
                )

    def _taken_error(self) -> UserError:
        what, fix = "the folder holds files that are not of a run", "--output_dir NAME with a new or empty folder"
        if (self.path / CONFIG).exists() or (self.path / CHECKPOINTS).exists():
            what = "the folder already holds a run"
            fix = "--output_dir NAME (make: OUT=NAME) for a new run beside it, or --fresh to move the old run aside"
        return UserError(ExitCode.OUTPUT, Problem(what, KEY, str(self.path)), fix=fix)

    def _refuse_running(self) -> None:
        lock = self.path / LOCK
        if not lock.exists():
            return
        # A lock that can be acquired was left by a process that ended; closing the file releases it.
        handle = os.open(lock, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._running_error() from None
        finally:
            os.close(handle)

    def _running_error(self) -> UserError:
        return UserError(
            ExitCode.OUTPUT,
            Problem("another process uses the folder", KEY, str(self.path)),
            fix="wait until it ends, or --output_dir NAME",
        )


def check_space(path: Path, needed: int, key: str = KEY) -> None:
    """Check that the disk can hold what the run will write.

    Args:
        path: the run's folder, which may not exist yet.
        needed: bytes.
        key: the option that names the folder.

    Raises:
        UserError: the free space is too small.
    """
    above = path
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            ExitCode.OUTPUT,
            Problem(f"{free / 1e9:.1f} GB are free, but the run writes up to {needed / 1e9:.1f} GB", key, str(path)),
            fix=f"free some space, or choose --{key} on another disk",
        )
