"""Rows that are left out by `bad_rows: drop`: why, how many for each reason, and the list of them all."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.errors import ExitCode, Problem, UserError

BadRowsOption = Literal["error", "drop"]

BAD_ROWS = "bad_rows.jsonl"
"""The list of rows that were left out, in a run's folder."""

MAX_PLACES = 5
"""Rows that one warning lists; further ones are counted."""

MOST_REASONS = 10
"""Reasons that have a line of their own, the most frequent first; rows with others are counted together."""

NUMBER = re.compile(r"\d[\d,]*")


class LeftOutRow(NamedTuple):
    """A row that was left out.

    Attributes:
        file: its file.
        line: the line where it begins.
        nth: its number among the rows of this line, from 1.
        reasons: why it is bad.
        text: the offending text of the first reason, shortened.
    """

    file: str
    line: int
    nth: int
    reasons: list[str]
    text: str

    @property
    def place(self) -> str:
        """Where it is, as messages print it."""
        return f"{self.file}:{self.line}" + (f" (row {self.nth} of the line)" if self.nth > 1 else "")

    def to_json(self) -> dict[str, Any]:
        """The row as a line of `bad_rows.jsonl` has it."""
        nth = {"row_of_line": self.nth} if self.nth > 1 else {}
        return {"file": self.file, "line": self.line, **nth, "reasons": self.reasons, "text": self.text}


def format_left_out(rows: Sequence[LeftOutRow], total: int) -> list[str]:
    """Format a line with the number of rows that were left out, and one for each reason with its count and places.

    Reasons that differ only in numbers, such as that of a message, are counted together, and shown without these.

    Args:
        rows: the rows that were left out.
        total: the number of all rows.
    """
    if not rows:
        return []
    found: dict[str, list[LeftOutRow]] = {}
    reasons: dict[str, set[str]] = {}
    for row in rows:
        keys = [NUMBER.sub("0", reason) for reason in row.reasons]
        for key, reason in zip(keys, row.reasons, strict=True):
            reasons.setdefault(key, set()).add(reason)
        for key in dict.fromkeys(reversed(keys)):
            found.setdefault(key, []).append(row)
    ordered = sorted(found, key=lambda key: -len(found[key]))
    lines = [f"bad rows are left out: {len(rows):,} of {total:,} ({len(rows) / total:.1%})"]
    for key in ordered[:MOST_REASONS]:
        places = format_places([row.place for row in found[key]])
        lines += [f"left out, {_join_reasons(key, reasons[key])}: {len(found[key]):,} ({places})"]
    if rest := ordered[MOST_REASONS:]:
        lines.append(f"left out for {len(rest)} other reasons: {sum(len(found[key]) for key in rest):,}")
    return lines


def _join_reasons(key: str, reasons: Collection[str]) -> str:
    """One text for reasons that differ only in numbers, which are 0 in `key`: `...` for each that differs."""
    numbers = iter([set(column) for column in zip(*map(NUMBER.findall, reasons), strict=True)])
    return NUMBER.sub(lambda _: same.pop() if len(same := next(numbers)) == 1 else "...", key)


def check_share(bad: int, kept: int, problems: Iterable[Problem]) -> None:
    """Check that most rows are sound: where they are not, an option or the format is probably wrong.

    Args:
        bad: the number of bad rows.
        kept: the number of sound rows.
        problems: what is wrong with the bad rows.

    Raises:
        UserError: 65, more than half of the rows are bad.
    """
    if bad > kept:
        what = f"{bad:,} of {bad + kept:,} rows are bad, and at most half of a set may be left out"
        raise UserError(ExitCode.DATA, [Problem(what, "data.bad_rows", fix="correct the rows"), *problems])


def write_left_out(path: Path, sets: Mapping[str, Sequence[LeftOutRow]]) -> None:
    """Write the rows that were left out, a line of JSON each, with the name of their set.

    Raises:
        OSError: the file cannot be written.
    """
    lines = (json.dumps({"set": name, **row.to_json()}, ensure_ascii=False) for name in sets for row in sets[name])
    with open_atomic(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def format_places(places: list[str], count: int | None = None) -> str:
    """Join the first `MAX_PLACES` places with commas, and append the number of the others.

    Args:
        places: at least the first `MAX_PLACES` places.
        count: the number of all; by default, that of `places`.
    """
    rest = (len(places) if count is None else count) - MAX_PLACES
    return ", ".join(places[:MAX_PLACES]) + (f", and {rest:,} more" if rest > 0 else "")
