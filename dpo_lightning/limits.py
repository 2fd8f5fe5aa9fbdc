"""Limits of processor time and memory for chat templates and regular expressions from untrusted files."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

TEMPLATE_SECONDS = 2.0
"""Processor time for all chat templates of a tokenizer; wall-clock time would depend on other processes."""

ROOM = 1 << 30
"""Bytes that may be allocated in addition to the memory that the process has mapped."""

AGAIN = 0.5
"""Seconds until the signal is repeated, in case a library caught the first exception."""

MEMORY_PAGES = Path("/proc/self/statm")
"""Where Linux reports the mapped memory of the process."""


class LimitError(Exception):
    """The limit of processor time was exceeded."""


@contextlib.contextmanager
def limit_resources(seconds: float, room: int = ROOM) -> Iterator[None]:
    """Raise `LimitError` or `MemoryError` if the block takes more than `seconds` or `room` bytes.

    Time is limited in the main thread only, where Python handles signals: Python code, its regular expressions and its
    arithmetic are interrupted, other libraries are not. Memory is limited on Linux.
    """
    with memory_limit(room), time_limit(seconds):
        yield


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `LimitError` if the block takes more than `seconds` of processor time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGPROF counts the processor time of the process.
    before = signal.signal(signal.SIGPROF, raise_limit_error)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before or signal.SIG_DFL)


def raise_limit_error(number: int, frame: FrameType | None) -> None:
    """Raise `LimitError` from the signal handler."""
    raise LimitError


@contextlib.contextmanager
def memory_limit(room: int) -> Iterator[None]:
    """Raise `MemoryError` if the block allocates more than `room` bytes."""
    try:
        pages = int(MEMORY_PAGES.read_text(encoding="ascii").split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # The limit counts all mapped memory, so what is mapped already is added.
    wanted = pages * resource.getpagesize() + room
    if soft == resource.RLIM_INFINITY or wanted < soft:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
