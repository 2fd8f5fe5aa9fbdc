"""`track`: shows how far a long loop over rows is, as a bar on a terminal or as lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

from dpo_lightning.activity import bar_shown
from dpo_lightning.log import is_first_process, logger
from dpo_lightning.stopping import raise_if_requested

T = TypeVar("T")

EVERY = 30.0
"""Seconds between two lines in a log."""

LEAST = 2.0
"""Seconds after which a bar appears."""


def track(rows: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over rows; the first process shows how many are done, how fast, and the time that is left.

    Between two rows, a signal or a time limit ends the loop.

    Args:
        rows: the rows.
        what: what is done, such as `encoding`.
        total: the number of rows, where it is known.

    Raises:
        Stopped: a signal has come, or a time limit has passed.
    """
    if is_first_process() and sys.stderr.isatty():
        from tqdm import tqdm

        with bar_shown():
            for row in tqdm(rows, what, total, leave=False, unit=" rows", delay=LEAST, dynamic_ncols=True):
                yield row
                raise_if_requested()
        return
    began = logged = monotonic()
    for done, row in enumerate(rows, 1):
        yield row
        raise_if_requested()
        now = monotonic()
        if now - logged >= EVERY:
            logged = now
            logger.info(f"{what}: {describe_progress(done, total, now - began)}")


def describe_progress(done: int, total: int | None, seconds: float) -> str:
    """Describe how many rows are done after some seconds, how fast, and how much time is left."""
    speed = done / seconds
    if total is None:
        return f"{done:,} rows, {speed:,.0f} rows/s"
    left = round((total - done) / speed)
    minutes, rest = divmod(left, 60)
    return f"{done:,} of {total:,} rows ({done / total:.0%}), {speed:,.0f} rows/s, {minutes}:{rest:02} left"
