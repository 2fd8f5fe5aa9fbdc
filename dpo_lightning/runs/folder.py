"""One run's folder: claimed by one process, never written over, its `config.yaml` enough to repeat the run."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger

KEY = "output_dir"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


class RunFolder:
    """The folder that `--output_dir` names. `check` changes nothing; `claim` makes it and locks it."""

    def __init__(self, path: str) -> None:
        """Name the folder."""
        if "\0" in path or not path.strip():
            raise UserError(
                ExitCode.CONFIG, Problem("this is no folder name", KEY, path), fix="--output_dir outputs/NAME"
            )
        if path.startswith("~") or re.search(r"\$[\w{]|://", path) or not path.isprintable():
            raise UserError(
                ExitCode.CONFIG,
                Problem("a folder's name is taken as it stands: no `~`, `$NAME` or URL", KEY, path),
                fix="--output_dir with the path written out (a shell does that outside of quotes)",
            )
        self.path = Path(path)
        self._lock: int | None = None
        self._was_used = False
        self._made: list[Path] = []
        self._before: set[Path] = set()
        self._aside: Path | None = None

    def check(self, *, fresh: bool = False, ckpt_path: str | None = None) -> None:
        """Refuse a folder that is in use, used, or cannot be written.

        Args:
            fresh: a used folder is going to be moved aside.
            ckpt_path: a checkpoint of this very folder may go on in it.

        Raises:
            UserError: with exit code 73 and the ways on; 64 for a `fresh` that cannot be.
        """
        self.check_writable()
        self._was_used = self.used()
        if not self._was_used:
            return
        self._refuse_running()
        if fresh:
            self._check_movable(ckpt_path)
        elif not self.holds(ckpt_path):
            raise self._taken()
        else:
            self.check_links()

    def check_links(self) -> None:
        """Refuse links in the folder through which something outside of it would be written over."""
        home = self.path.resolve()
        for folder, folders, files in os.walk(self.path):
            for link in (Path(folder, name) for name in [*folders, *files]):
                if link.is_symlink() and home not in link.resolve().parents:
                    raise UserError(
                        ExitCode.OUTPUT,
                        Problem("a link leads out of the folder, and would be written through", KEY, str(link)),
                        fix="--output_dir NAME goes on in a new folder; or remove the link",
                    )

    def check_writable(self) -> None:
        """Refuse a folder that is none, or that nothing can be written in."""
        above = self.path
        try:
            while not above.exists() and not above.is_symlink() and above != above.parent:
                above = above.parent
            if not above.is_dir():
                raise UserError(
                    ExitCode.OUTPUT,
                    Problem(f"{above} is no folder", KEY, str(self.path)),
                    fix="--output_dir elsewhere",
                )
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            raise UserError(
                ExitCode.OUTPUT,
                Problem(f"nothing can be written in {above}: {error.strerror}", KEY, str(self.path)),
                fix="--output_dir with a folder of yours, or mend its mode",
            ) from None

    def used(self) -> bool:
        """Whether anything lies in the folder."""
        return self.path.is_dir() and any(entry.name != LOCK for entry in self.path.iterdir())

    def holds(self, ckpt_path: str | None) -> bool:
        """Whether a checkpoint lies in this folder, however deep, and not in that of another run within it."""
        home, above = self.path.resolve(), Path(ckpt_path).resolve().parents if ckpt_path is not None else ()
        return next((folder for folder in above if folder == home or (folder / CONFIG).exists()), None) == home

    def claim(self, *, fresh: bool = False) -> None:
        """Make the folder, moving a used one aside where that was asked for, and lock it for this process."""
        try:
            if fresh and self.used():
                self._move_aside()
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._before = set(self.path.iterdir())
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                ExitCode.OUTPUT,
                Problem(f"the folder cannot be made: {error.strerror}", KEY, str(self.path)),
                fix="--output_dir elsewhere",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._running() from None
        if self.used() and not self._was_used:  # another run began and ended since `check`
            raise self._taken()

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_config(self, text: str) -> None:
        """Keep the run's configuration; a continued run adds its own beside the first."""
        target, attempt = self.path / CONFIG, 1
        while target.exists():
            attempt += 1
            target = self.path / f"config-{attempt}.yaml"
        target.write_text(text, encoding="utf-8")

    def abandon(self) -> None:
        """Leave the place as it was before `claim`, for a run that ended before its first step."""
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
            logger.info(f"the old run is {self.path} again")

    def _move_aside(self) -> None:
        aside = self.path.with_name(f"{self.path.name}.{datetime.now():%Y%m%d-%H%M%S}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}.1")
        self.path.rename(aside)
        self._aside, self._was_used = aside, False
        logger.info(f"the old run is now {aside}")

    def _check_movable(self, ckpt_path: str | None) -> None:
        if self.holds(ckpt_path):
            raise UserError(
                ExitCode.CONFIG,
                Problem("--fresh would move this checkpoint aside", "ckpt_path", str(ckpt_path)),
                fix="leave --fresh out to go on in the folder, or --output_dir NAME",
            )
        if self.path.name in ("", ".."):
            raise UserError(
                ExitCode.CONFIG,
                Problem("--fresh cannot move this folder aside", KEY, str(self.path)),
                fix="--output_dir with the folder's own name",
            )

    def _taken(self) -> UserError:
        return UserError(
            ExitCode.OUTPUT,
            Problem("the folder holds a run already", KEY, str(self.path)),
            fix="--output_dir NAME (make: OUT=NAME) for a new run beside it, or --fresh to move the old run aside",
        )

    def _refuse_running(self) -> None:
        lock = self.path / LOCK
        if not lock.exists():
            return
        handle = os.open(lock, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._running() from None
        finally:
            os.close(handle)

    def _running(self) -> UserError:
        return UserError(
            ExitCode.OUTPUT,
            Problem("another process is running in the folder", KEY, str(self.path)),
            fix="wait for it, or --output_dir NAME",
        )


def check_space(path: Path, needed: int, key: str = KEY) -> None:
    """Refuse to start where the disk cannot hold what the run will write.

    Args:
        path: the run's folder, there already or not.
        needed: bytes.
        key: the option that names the folder.
    """
    above = path
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            ExitCode.OUTPUT,
            Problem(f"{free / 1e9:.1f} GB are free, the run writes up to {needed / 1e9:.1f} GB", key, str(path)),
            fix=f"make room, or --{key} on another disk",
        )
