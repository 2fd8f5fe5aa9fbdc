"""`RunFolder`: the folder of one run, locked by its process, never overwritten, with its `config.yaml`."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpo_lightning.atomic_files import move_aside, open_atomic
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.folder_names import CHECKPOINTS, CONFIG, check_output_path
from dpo_lightning.log import logger
from dpo_lightning.special_files import real_path

KEY = "output_dir"
LOCK = ".lock"

EARLY = (LOCK, "mlflow.db")
"""What a folder may hold before a run begins in it; the client of MLflow creates its
database as soon as its logger is made.
"""

LOCKS: set[int] = set()
"""Open files of the locks that this process holds; a forked child closes them, or it would keep them locked."""


def close_locks() -> None:
    """Close the locks of the process that this one was forked from."""
    while LOCKS:
        os.close(LOCKS.pop())


os.register_at_fork(after_in_child=close_locks)


class RunFolder:
    """The folder of `--output_dir`. `check` changes nothing; `claim` creates it and locks it."""

    def __init__(self, path: str) -> None:
        check_output_path(path, KEY, f"--{KEY} outputs/NAME")
        self.path = Path(path)
        self._lock: int | None = None
        self._was_used = False
        self._checkpoints: Mapping[str, int] | None = None
        self._made: list[Path] = []
        self._before: set[Path] = set()
        self._aside: Path | None = None

    def check(
        self, *, fresh: bool = False, again: bool = False, ckpt_path: str | None = None, reads: Iterable[str] = ()
    ) -> None:
        """Refuse a folder that is in use, used, or not writable.

        Args:
            fresh: whether a used folder will be moved aside.
            again: whether the folder holds an earlier attempt of the same run.
            ckpt_path: a checkpoint with which the run is resumed; it may be in this folder.
            reads: strings of the config; paths of models and data among them may not be moved aside.

        Raises:
            UserError: 73, the folder is refused; 64, `fresh` is not possible.
        """
        self.check_writable()
        self._was_used, self._checkpoints = self.is_used(), self._list_checkpoints()
        if not self._was_used:
            return
        self.refuse_running()
        if fresh:
            self._check_movable(ckpt_path, reads)
        elif not again and not self.holds(ckpt_path):
            raise self._taken_error()
        else:
            self.check_links()

    def check_links(self) -> None:
        """Refuse links that lead out of the folder, through which other files would be overwritten.

        Raises:
            UserError: there is such a link.
        """
        home = real_path(self.path)
        for folder, folders, files in os.walk(self.path):
            for link in (Path(folder, name) for name in [*folders, *files]):
                if link.is_symlink() and home not in real_path(link).parents:
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
        """Whether the folder contains anything but what is there before a run begins."""
        return self.path.is_dir() and any(entry.name not in EARLY for entry in self.path.iterdir())

    def holds(self, ckpt_path: str | None) -> bool:
        """Whether a checkpoint belongs to this folder's run, and not to one whose folder is inside it."""
        # The innermost folder above the checkpoint that has a configuration is its run's.
        home, above = real_path(self.path), Path(os.path.realpath(ckpt_path)).parents if ckpt_path else ()
        return next((folder for folder in above if folder == home or (folder / CONFIG).exists()), None) == home

    def claim(self, *, fresh: bool = False) -> None:
        """Create and lock the folder; with `fresh`, move a used one aside before.

        Raises:
            UserError: the folder cannot be created, or another process uses it.
        """
        try:
            if fresh and self.is_used():
                self._move_aside()
            place = real_path(self.path)  # of a link, the folder to which it leads
            self._made = [folder for folder in (place, *place.parents) if not folder.exists()]
            place.mkdir(parents=True, exist_ok=True)
            # `abandon` removes what was added to it.
            self._before = set(self.path.iterdir())
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                ExitCode.OUTPUT,
                Problem(f"the folder cannot be created: {error.strerror}", KEY, str(self.path)),
                fix="choose another --output_dir",
            ) from None
        if not acquire_lock(self._lock):
            raise self._running_error()
        LOCKS.add(self._lock)
        self._remove_partial_files()
        if self.is_used() and not self._was_used:  # another run began and ended since `check`
            raise self._taken_error()
        if not fresh and self._checkpoints not in (None, self._list_checkpoints()):
            raise UserError(
                ExitCode.OUTPUT,
                Problem("another process has gone on with the run meanwhile", KEY, str(self.path)),
                fix="run the same command again",
            )

    def release(self) -> None:
        """Unlock the folder, so that other runs may use it; a second call has no effect."""
        if self._lock is not None:
            LOCKS.discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def write_config(self, text: str) -> None:
        """Write the run's configuration; a resumed run adds its own as `config-2.yaml` and so on."""
        target, attempt = self.path / CONFIG, 1
        while target.exists():
            attempt += 1
            target = self.path / f"config-{attempt}.yaml"
        with open_atomic(target) as file:
            file.write(text)

    def abandon(self) -> None:
        """Restore the state before `claim`, for a run that ended before its first step."""
        added = set(self.path.iterdir()) - self._before
        if self.path / CHECKPOINTS in added:
            return
        for entry in added:
            remove_entry(entry)
        for folder in self._made:
            if not any(folder.iterdir()):
                folder.rmdir()
        if self._aside is not None and not self.path.exists():
            self._aside.rename(real_path(self.path))
            logger.info(f"no step was trained: the previous run's folder was renamed back to {self.path}")

    def _list_checkpoints(self) -> dict[str, int]:
        return {path.name: path.lstat().st_mtime_ns for path in (self.path / CHECKPOINTS).glob("*.ckpt")}

    def _remove_partial_files(self) -> None:
        """Remove what a process that was killed has left half-written."""
        for folder in (self.path, self.path / CHECKPOINTS):
            for pattern in (".*.partial", ".final_model.old"):
                for entry in folder.glob(pattern):
                    remove_entry(entry)

    def _move_aside(self) -> None:
        # The folder itself, not a link to it, beside which the new run would lie on another disk.
        self._aside, self._was_used = move_aside(real_path(self.path)), False
        logger.info(f"the old run is now {self._aside}")

    def _check_movable(self, ckpt_path: str | None, reads: Iterable[str]) -> None:
        """Refuse to move a folder aside that is no run, or that the new run reads."""
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

        if not (self.path / CONFIG).exists() and not (self.path / CHECKPOINTS).exists():
            raise self._taken_error()
        home = real_path(self.path)
        for path in reads:
            if os.access(path, os.F_OK) and home in (real_path(path), *real_path(path).parents):
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

    def refuse_running(self) -> None:
        """Refuse a folder in which another process works.

        Raises:
            UserError: 73, as described.
        """
        lock = self.path / LOCK
        if not lock.exists():
            return
        # A lock that can be acquired was left by a process that ended; closing the file releases it.
        handle = os.open(lock, os.O_RDWR if os.access(lock, os.W_OK) else os.O_RDONLY)
        try:
            if not acquire_lock(handle):
                raise self._running_error()
        finally:
            os.close(handle)

    def _running_error(self) -> UserError:
        return UserError(
            ExitCode.OUTPUT,
            Problem("another process uses the folder", KEY, str(self.path)),
            fix="wait until it ends, or --output_dir NAME",
        )


def remove_entry(entry: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def acquire_lock(handle: int) -> bool:
    """Lock a file, and return whether no other process has locked it.

    On file systems without such locks, two runs in one folder are not noticed. NFS locks only files that are open for
    writing.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.info(f"note: the folder's file system has no locks ({error.strerror}): nothing else may write into it")
    return True
