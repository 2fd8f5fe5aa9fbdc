"""Columns that nothing reads: an error where the answer may depend on them, otherwise a warning."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_lightning.data.examples import Example
from dpo_lightning.data.formats.names import (
    LABELS,
    RANKS,
    SCORES,
    find_preference,
    has_words,
    normalize_name,
    split_name,
)
from dpo_lightning.data.kinds.columns import NO_TEXT, WEIGHTS, count_columns
from dpo_lightning.data.kinds.context_columns import WORDS
from dpo_lightning.data.kinds.fields import VERDICTS
from dpo_lightning.data.kinds.turn_marks import MARKED, MARKS
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.invisible_characters import iterate_texts
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name

SILENT = frozenset({"language", "id", "source", "__index_level_0__"})
"""Columns that are common in data sets and need no warning when they are not used, unless they have the question."""

META = "meta"
"""Prefix of names that need no such warning either."""

ABOUT_ANSWERS = frozenset(
    (
        *("rationale", "explanation", "reason", "reasons", "critique", "feedback", "comment", "comments", "judgement"),
        *("judgment", "statement", "analysis", "annotator", "annotators", "annotations", "model", "url", "generated"),
        *("이유", "근거", "설명", "비고", "메모", "理由", "原因", "备注"),
    )
)
"""Words of columns with text about the answers or the row, on which an answer never depends."""

MAX_NAMES = 20
"""Column names that one message lists at most."""

IGNORE = "--data.ignore_columns"


def check_unread(
    rows: Sequence[Row],
    used: Collection[str],
    ignored: Collection[str],
    examples: Sequence[Example],
    bad: BadRows,
    *,
    guessed: Mapping[str, str] | None = None,
) -> None:
    """Report rows that have text in a column that is not read, although the answer may depend on it.

    That is a column whose name says so (`context`, `ratings`, `label`, ...), and any column with text where the prompt
    is empty or was not a column of its own, or where columns were assigned by their names. A column is not reported in
    rows whose other columns contain its text as well.

    Args:
        rows: the rows with our columns.
        used: the columns that are read.
        ignored: columns that the user leaves aside.
        examples: what was read of the rows.
        bad: collects the errors.
        guessed: our column -> the file's, where columns were assigned by their names.
    """
    names = [name for name in count_columns(rows) if name not in used and name not in ignored]
    empty = {example.origin for example in examples if not example.prompt}
    for name in names:
        reason = _find_reason(name, rows, used)
        for row in rows:
            value = row.values.get(name)
            if value is None or not (reason or guessed or row.origin in empty):
                continue
            if reason in ("ranks", "weight") or (reason == "label" and is_verdict(value)):
                found = is_numbers(value) if reason == "ranks" else True
            else:
                found = _holds_question(name, value, row, used, reason)
            if found:
                bad.add(row.origin, _describe(name, row, reason, used, guessed))


def is_verdict(value: Any) -> bool:
    """Whether a value judges an answer as good or bad."""
    return str(value).strip().lower() in VERDICTS


def is_numbers(value: Any) -> bool:
    """Whether a value is a list of numbers."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, (int, float)) for item in value)


def _find_reason(name: str, rows: Sequence[Row], used: Collection[str]) -> str:
    """What the name of a column says: `ranks`, `label`, `weight`, our column for text of the question, or ""."""
    word = normalize_name(name)
    if word in SCORES | RANKS:
        return "ranks" if "chosen" not in used else ""
    if word in LABELS and "label" not in used:
        return "label"
    if name.lower() in WEIGHTS or name.lower() in MARKS:
        return "weight"
    return match_context(name, any(part in row.values for row in rows for part in ("prompt", "instruction")))


def match_context(name: str, has_prompt: bool) -> str:
    """Our column for the first or last word of a name, or ""; `prompt` only if the rows have a prompt column."""
    if name.lower().endswith(NO_TEXT):
        return ""
    words = re.split(r"[\W_]+", name.lower())
    ours = WORDS.get(next((word for word in WORDS if word in (words[0], words[-1])), ""), "")
    return "" if ours == "prompt" and not has_prompt else ours


def _holds_question(name: str, value: Any, row: Row, used: Collection[str], reason: str) -> bool:
    """Whether a column has text that no column that is read contains."""
    if reason == "label":
        return False
    if not reason:
        words = {*split_name(name)}
        if words & ABOUT_ANSWERS or name.startswith(META) or name.lower().endswith(NO_TEXT) or not has_words(value):
            return False
        if find_preference(name):
            return False
    texts = [text.strip() for text in iterate_texts(value) if text.strip()]
    read = "\n\n".join(text for other in used for text in iterate_texts(row.values.get(other)))
    return not all(text in read for text in texts)


def _describe(name: str, row: Row, reason: str, used: Collection[str], guessed: Mapping[str, str] | None) -> RowError:
    """The error for a row whose column `name` is not read."""
    shown = shlex.quote(excerpt_name(name))
    ignore = f"{IGNORE} [{shown}]"
    text = str(row.values[name])
    if reason == "ranks":
        return RowError(
            f"'{name}' orders the answers and is not read", text, f"--data.columns.scores {shown}, or {ignore}"
        )
    if reason == "label":
        return RowError(f"'{name}' judges the answer and is not read", text, f"--config configs/kto.yaml, or {ignore}")
    if reason == "weight":
        way = f"for a turn, {MARKED} in the message; for a row, --data.columns.weight {shown}; or {ignore}"
        return RowError(f"'{name}' may select what is learned and is not read", text, way)
    what = f"'{name}' has text that is not read, and the answer may depend on it"
    if guessed:
        flags = " ".join(f"--data.columns.{ours} {shlex.quote(theirs)}" for ours, theirs in guessed.items())
        return RowError(what, text, f"{ignore}, or write it into the prompt; the columns that are read: {flags}")
    ours = reason or "prompt"
    way = f"--data.columns.{ours} {shown}" if ours not in row.values and ours in (*used, "prompt", "input") else ""
    return RowError(what, text, f"{way or 'write it into the prompt'}, or {ignore}")


def describe_unused(rows: Sequence[Row], used: Collection[str], ignored: Collection[str] = ()) -> list[str]:
    """The warnings about columns: those that nothing reads, and those for which a file used its own name instead."""
    names = [name for name in count_columns(rows) if name not in used and not _is_silent(name) and name not in ignored]
    names += sorted(frozenset().union(*(row.displaced for row in rows)))
    kept = {(row.origin.file, *pair): None for row in rows for pair in sorted(row.kept)}
    lines = [
        f"{file} has no column '{excerpt_name(named)}': its '{ours}' is read instead" for file, named, ours in kept
    ]
    if names:
        shown = ", ".join(excerpt_name(name) for name in names[:MAX_NAMES])
        lines.append(f"columns that are not used: {shown}" + (", ..." if len(names) > MAX_NAMES else ""))
    return lines


def _is_silent(name: str) -> bool:
    return name in SILENT or name.startswith(META)
