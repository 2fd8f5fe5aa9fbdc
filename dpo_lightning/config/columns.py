"""Text in two columns for a terminal of 80 characters."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

WIDTH = 79


def format_row(left: str, right: str, start: int) -> Iterator[str]:
    """Iterate over the lines of a row.

    Args:
        left: text of the first column; where it is too long, the second one begins below it.
        right: text of the second column, which is wrapped.
        start: where the second column begins.
    """
    lines = textwrap.wrap(right, WIDTH - start, break_on_hyphens=False, break_long_words=False)
    if len(left) + 1 < start and lines:
        yield left.ljust(start) + lines.pop(0)
    else:
        yield left
    yield from (" " * start + line for line in lines)
