"""Limits of processor time and memory, for chat templates and regular expressions of strangers and by `ulimit`."""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

from dpo_lightning.errors import no_memory_error

TEMPLATE_SECONDS = 2.0
"""Processor time for all chat templates of a tokenizer; wall-clock time would depend on other processes."""

ROOM = 1 << 30
"""Bytes that may be allocated in addition to the memory that the process has mapped."""

LEAST_ADDRESS_SPACE = 1_000_000_000
"""Bytes of address space below which imports fail in many ways, or not at all: OpenBLAS tries again for ever."""

AGAIN = 0.5
"""Seconds until the signal is repeated, in case a library caught the first exception."""

MEMORY_PAGES = Path("/proc/self/statm")
"""Where Linux reports the mapped memory of the process."""


class LimitError(Exception):
    """The limit of processor time was exceeded."""


_PREPARED: ContextVar[bool] = ContextVar("_PREPARED", default=False)
"""Whether this thread is within `prepare_limits`."""


def check_address_space() -> None:
    """Refuse a limit of this process's address space (`ulimit -v`) under which the imports do not end.

    Raises:
        UserError: 74, the limit is too small.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise no_memory_error()


@contextlib.contextmanager
def limit_resources(seconds: float, room: int = ROOM) -> Iterator[None]:
    """Raise `LimitError` or `MemoryError` if the block takes more than `seconds` or `room` bytes.

    Time is limited in the main thread only, where Python handles signals: Python code, its regular expressions and its
    arithmetic are interrupted, other libraries are not. Memory is limited on Linux.
    """
    if _PREPARED.get():
        with _run_timer(seconds):
            yield
    else:
        with memory_limit(room), time_limit(seconds):
            yield


@contextlib.contextmanager
def prepare_limits(room: int = ROOM) -> Iterator[None]:
    """Prepare what `limit_resources` needs, once for many short blocks within this one.

    Preparing takes as long as rendering a short chat. The limit of memory is that of the whole block.
    """
    with memory_limit(room), _handle_signal():
        token = _PREPARED.set(True)
        try:
            yield
        finally:
            _PREPARED.reset(token)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `LimitError` if the block takes more than `seconds` of processor time."""
    with _handle_signal(), _run_timer(seconds):
        yield


@contextlib.contextmanager
def _handle_signal() -> Iterator[None]:
    """Raise `LimitError` at the signal of the timer, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGPROF counts the processor time of the process.
    before = signal.signal(signal.SIGPROF, raise_limit_error)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before or signal.SIG_DFL)


@contextlib.contextmanager
def _run_timer(seconds: float) -> Iterator[None]:
    """Send the signal after `seconds` of processor time, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


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
