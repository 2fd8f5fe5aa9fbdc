"""Limits of processor time and memory for templates and regular expressions from elsewhere."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SECONDS = 2.0
"""Of the processor, not of the clock: a machine that is busy with something else makes no difference."""

ROOM = 1 << 30
"""Bytes that may be allocated on top of the memory that the process has mapped."""

AGAIN = 0.5
"""Seconds after which the signal comes again, where a library caught what the first one raised."""

MEMORY_PAGES = Path("/proc/self/statm")


class LimitError(Exception):
    """The processor time is used up."""


@contextlib.contextmanager
def limited(seconds: float, room: int = ROOM) -> Iterator[None]:
    """Raise `LimitError` or `MemoryError` in a block that takes more than `seconds` or `room` bytes.

    The time counts in the main thread only, where signals are handled: Python code, its regular expressions and its
    arithmetic are interrupted, other libraries are not. Memory is limited on Linux.
    """
    with memory_limit(room), time_limit(seconds):
        yield


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """The part of `limited` that is about time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before or signal.SIG_DFL)


def stop(number: int, frame: FrameType | None) -> None:
    """End what runs."""
    raise LimitError


@contextlib.contextmanager
def memory_limit(room: int) -> Iterator[None]:
    """The part of `limited` that is about memory."""
    try:
        pages = int(MEMORY_PAGES.read_text(encoding="ascii").split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + room
    if soft == resource.RLIM_INFINITY or wanted < soft:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
