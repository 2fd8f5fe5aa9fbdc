"""`activity`: names what a command is doing, which is logged about once a minute while nothing else is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

EVERY = 50.0
"""Seconds without a line after which the activity is logged, so that no minute passes without one."""


class Heartbeat(logging.Handler):
    """A handler that is no output itself: it notes when something was logged, and logs the activity after a while."""

    def __init__(self) -> None:
        super().__init__()
        self.logged_at = monotonic()
        self.shown = 0
        """Progress bars that are shown, beside which no lines are needed."""
        self._activities: list[tuple[str, float]] = []
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time of a line."""
        self.logged_at = monotonic()

    def beat(self) -> float:
        """Log the activity if that is due; return the seconds until it may be due again."""
        now = monotonic()
        if not self._activities or self.shown:
            return EVERY / 10
        what, began = self._activities[-1]
        if (left := max(self.logged_at, began) + EVERY - now) > 0:
            return left
        self.logged_at = now  # also in processes that log nothing
        logging.getLogger("dpo_lightning").info(f"{what}: {format_duration(now - began)} so far")
        return EVERY

    def start(self) -> None:
        """Watch from now on, in a thread that ends with the process; a second call has no effect."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while True:
            sleep(max(self.beat(), 0.1))

    def begin(self, what: str) -> None:
        """Note that something begins."""
        self._activities.append((what, monotonic()))

    def end(self) -> None:
        """Note that what began last has ended."""
        self._activities.pop()


HEARTBEAT = Heartbeat()
"""That of this process; the command line starts it."""


@contextmanager
def activity(what: str) -> Iterator[None]:
    """Name what is being done within the block, or within a function that this decorates."""
    HEARTBEAT.begin(what)
    try:
        yield
    finally:
        HEARTBEAT.end()


@contextmanager
def bar_shown() -> Iterator[None]:
    """Log no activity within the block, where a progress bar is shown."""
    HEARTBEAT.shown += 1
    try:
        yield
    finally:
        HEARTBEAT.shown -= 1


def format_duration(seconds: float) -> str:
    """A time in the two largest units that it has: `45 s`, `2 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
