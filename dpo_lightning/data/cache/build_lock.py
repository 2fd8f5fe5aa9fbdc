"""`BuildLock`: lets one process build what several need, on any file system that can create a file exclusively."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dpo_lightning.log import is_first_process, logger
from dpo_lightning.special_files import check_not_special
from dpo_lightning.stopping import raise_if_requested

HEARTBEAT_SECONDS = 3.0
"""Time between the signs of life of a process that builds: it updates the time of its lock file."""

STALE_SECONDS = 90.0
"""Time without a sign of life after which a lock is removed; NFS may show times up to 60 s late."""

HEAD_START_SECONDS = 20.0
"""Time that other ranks wait for the first to begin, since its progress is what the user sees."""

POLL_SECONDS = 0.2
"""Time between two looks at the lock of another process."""

MAX_BYTES = 4096
"""What is read of a lock file; its content takes about 100 bytes."""


class BuildLock:
    """A lock file. Locks of the file system (`flock`) are not used: some cluster file systems lack them.

    It saves work and protects nothing: what is built has to be published by a single rename. If a process is taken for
    dead by mistake, two of them build the same.

    Attributes:
        has_waited: whether `acquire` waited for a process that then gave the lock back.
    """

    def __init__(self, path: Path) -> None:
        """Choose the file; nothing is created."""
        self.path = path
        self.has_waited = False
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self, is_done: Callable[[], bool]) -> bool:
        """Wait until the lock is free, and take it.

        Args:
            is_done: whether another process has built what this one needs.

        Returns:
            Whether the lock was taken; False once `is_done`.

        Raises:
            OSError: the file cannot be created for another reason than that it exists, or it is a folder.
        """
        began, logged, seen, seen_at = time.monotonic(), False, "", time.monotonic()
        while not is_done():
            raise_if_requested()
            content = read_lock(self.path)
            waited = time.monotonic() - began
            may_begin = is_first_process() or waited >= HEAD_START_SECONDS
            if content is None and may_begin:
                if self._create():
                    if not is_done():  # it may have been built between the look above and the lock
                        return True
                    self.release()
                    return False
                time.sleep(POLL_SECONDS)
                continue
            state = f"{content} {self._read_time()}"
            if state != seen:
                seen, seen_at = state, time.monotonic()
            silence = time.monotonic() - seen_at
            self.has_waited |= content is not None
            if content is not None and is_dead(content):
                self._remove_stale(content, "ended before the rows were encoded")
                continue
            if content is not None and silence > STALE_SECONDS:
                self._remove_stale(content, f"has shown no sign of life for {silence:.0f} s")
                continue
            if content is not None and not logged and waited > 1:
                logged = True
                logger.info(f"waiting for {describe_owner(content)}, which encodes the same rows")
            time.sleep(POLL_SECONDS)
        return False

    def release(self) -> None:
        """Give the lock back; does nothing if another process has taken it over."""
        self._released.set()
        with suppress(OSError):
            if self._token in (read_lock(self.path) or ""):
                self.path.unlink()

    def _create(self) -> bool:
        """Create the file, and begin to give signs of life; False if another process was faster."""
        content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": self._token})
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        except FileNotFoundError:  # another process has removed the folder, which was empty
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        self._released.clear()
        threading.Thread(target=self._give_signs_of_life, daemon=True).start()
        return True

    def _give_signs_of_life(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(self.path)

    def _remove_stale(self, content: str, reason: str) -> None:
        """Remove the lock of another process, unless a third one has done so already."""
        self.has_waited = False
        moved = self.path.with_name(f"{self.path.name}.{self._token}")
        with suppress(OSError):
            self.path.rename(moved)
            if read_lock(moved) != content:  # the lock of a process that was faster
                moved.rename(self.path)
                return
            moved.unlink()
            logger.info(f"note: {describe_owner(content)} {reason}: this run encodes the rows")

    def _read_time(self) -> float:
        """The time of the last sign of life, by the clock of the file system."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0


def read_lock(path: Path) -> str | None:
    """The content of a lock file; None if there is none, and "" for something else in its place, such as a pipe.

    Raises:
        IsADirectoryError: it is a folder.
    """
    try:
        check_not_special(path)
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode()
    except FileNotFoundError:
        return "" if path.is_symlink() else None
    except IsADirectoryError:
        raise IsADirectoryError(errno.EISDIR, f"{path.name} in it is a folder, and not a lock") from None
    except (OSError, ValueError):
        return ""


def is_dead(content: str) -> bool:
    """Whether the process that wrote a lock file ran on this host and has ended."""
    owner = parse_owner(content)
    if owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(str(owner["pid"])), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return False


def describe_owner(content: str) -> str:
    """The process that wrote a lock file, for messages."""
    owner = parse_owner(content)
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"


def parse_owner(content: str) -> dict[str, object]:
    """The values of a lock file; none for one that is being written, or was damaged."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}
