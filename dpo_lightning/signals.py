"""Signals that end a command: handlers only note them, or raise where a command has no boundary to stop at.

Only what Python has loaded at its start is imported here, so that the handlers are there before anything else is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
"""Signals with which schedulers, terminals and people end a process."""

RETRY = 0.05
"""Seconds until a signal that came within an import is looked at again."""

NOTICE = b"\nstopping at the next boundary; Ctrl-C again ends at once\n"

noted: list[signal.Signals] = []
"""Signals that have come, in their order."""

passes_on: list[Callable[[signal.Signals], Any]] = []
"""What is called with SIGTERM when a signal is noted, for processes that this one has started."""

_modes: set[str] = set()
"""`installed`: the handlers are there; `at once`: they raise; `workers`: forked processes take them later."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a command that has no boundary to stop at, or SIGINT came twice."""

    def __init__(self, number: signal.Signals) -> None:
        """Keep which signal came."""
        super().__init__(number.name)
        self.number = number


def install() -> None:
    """Let signals set a flag from now on; those that this process was started to ignore, as by nohup, stay ignored.

    A program that uses this package as a library keeps its own handlers: only the command line calls this.
    """
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)
    if not is_installed():
        os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=restore)
    _modes.add("installed")


def is_installed() -> bool:
    """Whether this process notes signals."""
    return "installed" in _modes


def end_at_once() -> None:
    """Let a signal end this command where it is, by `Interrupted`; one that has come before ends it now."""
    if is_installed():
        _modes.add("at once")
        if noted:
            raise Interrupted(noted[0])


def ignore() -> None:
    """Ignore signals from now on: the exit code is settled, and Python restores the default handlers at its end.

    SIGINT ends the process at once, in case that its end takes long.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number is signal.SIGINT else signal.SIG_IGN)


def block() -> None:
    """Let signals wait while a process is forked: a new one would note them, and go on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def unblock() -> None:
    """Let signals come again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def restore() -> None:
    """Restore the default handlers, in forked processes: their parents end them by SIGTERM."""
    for number in ENDING:
        if signal.getsignal(number) is _note:
            signal.signal(number, signal.SIG_DFL)
    if "workers" not in _modes:
        unblock()


@contextmanager
def starting_workers() -> Iterator[None]:
    """Let signals wait in processes that are forked within the block, until `shield_worker`."""
    _modes.add("workers")
    try:
        yield
    finally:
        _modes.discard("workers")


def shield_worker(_: int) -> None:
    """Leave signals to the process that a `DataLoader`'s worker works for, which goes on until it stops by itself.

    Schedulers send them to workers too. SIGTERM ends a worker only if its parent sends it, as torch does at its end.
    """
    others = [number for number in ENDING if number is not signal.SIGTERM]
    for number in others:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, others)
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()


def _follow_parent(parent: int) -> None:
    """End this process when its parent sends SIGTERM."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def _note(number: int, frame: Any) -> None:
    """Note a signal, or raise where a command ends at once."""
    came = signal.Signals(number)
    again = came in noted
    noted.append(came)
    if "at once" in _modes:
        if not again or came is signal.SIGINT:  # cleaning up is not interrupted, except by a second Ctrl-C
            _end(came, frame)
    elif again and came is signal.SIGINT:
        _end(came, frame)
    elif not again:
        if came is signal.SIGINT and os.isatty(2):
            os.write(2, NOTICE)  # print() may be what the signal has interrupted
        for pass_on in passes_on:
            pass_on(signal.SIGTERM)


def _end(came: signal.Signals, frame: Any) -> None:
    """Raise `Interrupted`, after an import that is under way: libraries report an exception within it as their own."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(signal.SIGALRM, lambda _, frame: _end(came, frame))
            signal.setitimer(signal.ITIMER_REAL, RETRY)
            return
        frame = frame.f_back
    raise Interrupted(came)
