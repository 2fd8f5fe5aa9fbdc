"""`BuildLock`: lets one process build what several need, on any file system that can create a file exclusively."""

from __future__ import annotations

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

BEAT = 3.0
"""Seconds between the signs of life of a process that builds: it updates the time of its lock file."""

STALE = 90.0
"""Seconds without a sign of life after which a process counts as ended; NFS may show times up to 60 s late."""

PATIENCE = 20.0
"""Seconds that other ranks wait for the first to begin, since its progress is what the user sees."""

POLL = 0.2


class BuildLock:
    """A lock file. Locks of the file system (`flock`) are not used: some cluster file systems lack them.

    It saves work and protects nothing: what is built has to be published by a single rename. If a process is taken for
    dead by mistake, two of them build the same.
    """

    def __init__(self, path: Path) -> None:
        """Choose the file; nothing is created."""
        self.path = path
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self, is_done: Callable[[], bool]) -> bool:
        """Wait until the lock is free, and take it.

        Args:
            is_done: whether another process has built what this one needs.

        Returns:
            Whether the lock was taken; False once `is_done`.

        Raises:
            OSError: the file cannot be created for another reason than that it exists.
        """
        began, logged, seen, seen_at = time.monotonic(), False, "", time.monotonic()
        while not is_done():
            content = self._read()
            waited = time.monotonic() - began
            may_begin = is_first_process() or waited >= PATIENCE
            if content is None and may_begin:
                if self._create():
                    return True
                time.sleep(POLL)
                continue
            state = f"{content} {self._stamp()}"
            if state != seen:
                seen, seen_at = state, time.monotonic()
            if content is not None and (time.monotonic() - seen_at > STALE or is_dead(content)):
                self._break(content)
                continue
            if content is not None and not logged and waited > 1:
                logged = True
                logger.info(f"waiting for {describe_owner(content)}, which encodes the same rows")
            time.sleep(POLL)
        return False

    def release(self) -> None:
        """Give the lock back; does nothing if another process has taken it over."""
        self._released.set()
        if self._token in (self._read() or ""):
            with suppress(OSError):
                self.path.unlink()

    def _create(self) -> bool:
        """Create the file, and begin to give signs of life; False if another process was faster."""
        content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": self._token})
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)

    def _break(self, content: str) -> None:
        """Remove the lock of a process that has ended, unless another one has done so already."""
        moved = self.path.with_name(f"{self.path.name}.{self._token}")
        with suppress(OSError):
            self.path.rename(moved)
            if moved.read_text(encoding="utf-8") != content:  # the lock of a process that was faster
                moved.rename(self.path)
                return
            moved.unlink()
            logger.info(f"note: {describe_owner(content)} ended before the rows were encoded: this run encodes them")

    def _read(self) -> str | None:
        """The content of the file; None if there is none."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return ""

    def _stamp(self) -> float:
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0


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
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
