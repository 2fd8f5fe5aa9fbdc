"""Columns with pictures, video or sound, which no model here reads although the answers are about them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from dpo_lightning.data.formats.media import INSTEAD, find_media, has_content
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.invisible_characters import iterate_texts
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name


def check_media(rows: Iterable[Row], unread: Sequence[str], bad: BadRows) -> None:
    """Report rows that need pictures, video or sound: each column once, at the first such row.

    Where bad rows are left out, each such row is reported.

    Args:
        rows: the rows with our columns.
        unread: the columns that are not read.
        bad: collects the errors.
    """
    names = [name for name in unread if find_media(name)]
    if not names:
        return
    first: dict[str, Row] = {}
    counts = dict.fromkeys(names, 0)
    for row in rows:
        # The bytes of a picture in a table are a fault of their column.
        needed = [name for name in names if has_content(row.values.get(name)) or name in row.faults]
        for name in needed:
            first.setdefault(name, row)
            counts[name] += 1
        if needed and bad.drops:
            bad.add(row.origin, _describe(needed[0], row, 1))
    for name, row in first.items():
        if not bad.drops:
            bad.add(row.origin, _describe(name, row, counts[name]))


def _describe(name: str, row: Row, rows: int) -> RowError:
    shown, media = excerpt_name(name), find_media(name)
    count = f" ({rows:,} rows)" if rows > 1 else ""
    fix = (
        f"leave such rows out (--data.bad_rows drop); or, if their texts mean something without {media}, "
        f"--data.ignore_columns {shlex.quote(shown)}, and remove what stands for it in the texts, such as <image>"
    )
    text = next(iterate_texts(row.values.get(name)), "")
    return RowError(f"these rows need {media}, {INSTEAD}: the column '{shown}'{count}", text, fix)
