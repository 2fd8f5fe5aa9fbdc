"""Columns that nothing reads: an error where the answer may depend on them, otherwise a warning."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from typing import Any

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.formats.names import (
    JUDGEMENTS,
    LABELS,
    RANKS,
    SCORES,
    TRAITS,
    find_preference,
    has_words,
    normalize_label,
)
from dpo_lightning.data.formats.words import normalize_name, split_name
from dpo_lightning.data.kinds.columns import NO_TEXT, WEIGHTS
from dpo_lightning.data.kinds.context_columns import INPUT, JOINT, WORDS
from dpo_lightning.data.kinds.turn_marks import MARKED, MARKS
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.invisible_characters import iterate_texts
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name, excerpt_value

SILENT = frozenset({"language", "id", "source", "__index_level_0__"})
"""Columns that are common in data sets and need no warning when they are not used, unless they have the question."""

BEGINNINGS = frozenset(("initial", "partial"))
"""First words of columns with the beginning of an answer, such as `initial_reason_steps`."""

OPTION = re.compile(r"[A-E]|(?:[Cc]hoice|[Oo]ption)[_ ]?(?:[A-Ea-e]|\d)")
"""Names of columns with the options of a question."""

META = "meta"
"""Prefix of names that need no such warning either."""

SWAPS = frozenset(("swapped", "flipped", "is swapped", "is flipped", "reversed"))
"""Names of columns that say that the answers of a pair changed places."""

ABOUT_ANSWERS = frozenset(
    (
        *("rationale", "explanation", "reason", "reasons", "critique", "feedback", "comment", "comments", "judgement"),
        *("judgment", "statement", "analysis", "annotator", "annotators", "annotations", "model", "url", "generated"),
        *("labelling", "labeling", "judge", "evaluation"),
        *("rationales", "explanations", "critiques", "feedbacks", "analyses", "judgements", "judgments", "statements"),
        *("이유", "근거", "설명", "비고", "메모", "理由", "原因", "备注"),
    )
)
"""Words of columns with text about the answers or the row, on which an answer never depends."""

MAX_NAMES = 20
"""Column names that one message lists at most."""


def check_unread(
    rows: Sequence[Row],
    used: Collection[str],
    unread: Sequence[str],
    empty_prompts: Sequence[int],
    bad: BadRows,
    *,
    named: bool = False,
    left_out: Collection[Origin] = (),
) -> None:
    """Report columns that are not read although an answer may depend on them, each once, at the first such row.

    These are columns whose name says so (`context`, `ratings`, `label`, ...), and any column with text where the prompt
    of a row is empty or the common beginning of two strings, or where the column of the question was assigned by its
    name. A column is not reported where the columns that are read contain its text too.

    Args:
        rows: the rows with our columns.
        used: the columns that are read.
        unread: the other columns but those of pictures, video or sound, in the order in which they first appear.
        empty_prompts: for each row, whether what was read of it has an empty prompt.
        bad: collects the errors.
        named: whether the column of the question was assigned by its name.
        left_out: rows that are bad already and are left out, whose columns do not count.
    """
    if not unread:
        return
    has_prompt = any(name in row.values for row in rows for name in ("prompt", "instruction"))
    meant = {name: match_context(name, has_prompt) for name in unread}
    found: dict[str, Row] = {}  # the first row that needs the column
    counts = dict.fromkeys(unread, 0)
    for row, empty in zip(rows, empty_prompts, strict=True):
        if row.origin in left_out:
            continue
        implied = "prompt" not in row.values and isinstance(row.values.get("chosen"), str)
        for name in unread:
            if _is_needed(name, row, used, meant[name], bool(named or empty or implied)):
                found.setdefault(name, row)
                counts[name] += 1
    reported = [name for name in unread if name in found]
    names = ", ".join(reported)
    ignore = f"--data.ignore_columns {shlex.quote(names if len(reported) == 1 else f'[{names}]')}"
    for name in reported:
        ours = meant[name] or ("" if named else "prompt")
        bad.refuse(found[name].origin, _describe(name, found[name], counts[name], used, ours, ignore))


def match_context(name: str, has_prompt: bool) -> str:
    """Our column for the first or last word of a name, or ""; `prompt` only if the rows have a prompt column."""
    if name.lower().endswith(NO_TEXT):
        return ""
    words = re.split(r"[\W_]+", name.lower())
    if ABOUT_ANSWERS.intersection(words) and words[0] not in BEGINNINGS:
        return ""
    if OPTION.fullmatch(name):
        return INPUT
    ours = WORDS.get(next((word for word in WORDS if word in (words[0], words[-1])), ""), "")
    return "" if ours == "prompt" and not has_prompt else ours


def _is_needed(name: str, row: Row, used: Collection[str], ours: str, any_text: bool) -> bool:
    """Whether the answer of a row may depend on a column that is not read."""
    value = row.values.get(name)
    if value is None or value == "":
        return False
    if _selects(name, value, used):
        return True
    if not ours:
        if not any_text or not has_words(value) or name.lower().endswith(NO_TEXT):
            return False
        if {*split_name(name)} & ABOUT_ANSWERS or name.startswith(META) or find_preference(name):
            return False
    texts = [text.strip() for text in iterate_texts(value) if text.strip()]
    read = JOINT.join(text for other in used for text in iterate_texts(row.values.get(other)))
    return not all(text in read for text in texts)


def _selects(name: str, value: Any, used: Collection[str]) -> str:
    """How a value selects what is learned: it orders, judges or exchanges answers, or weights the row; "" for none."""
    word = normalize_name(name)
    if word in SCORES | RANKS and "responses" in used:
        return "scores" if isinstance(value, list) and all(isinstance(item, (int, float)) for item in value) else ""
    if word in LABELS | TRAITS and {"completion", "output", "messages"} & {*used} and "label" not in used:
        return "label" if normalize_label(value) in JUDGEMENTS else ""
    if word in SWAPS:
        return "swap" if normalize_label(value) in ("true", "1", "yes") else ""
    return "weight" if name.lower() in WEIGHTS or name.lower() in MARKS else ""


def _describe(name: str, row: Row, rows: int, used: Collection[str], ours: str, ignore: str) -> RowError:
    """The error for rows that need the column `name`: it may be read as `ours`, or left aside by the flag `ignore`.

    Args:
        name: the column.
        row: the first row that needs it.
        rows: how many rows need it.
        used: the columns that are read.
        ours: our column as which it may be read.
        ignore: the flag that leaves it aside.
    """
    shown, values = excerpt_name(name), row.values
    count = f" ({rows:,} rows)" if rows > 1 else ""
    selects = _selects(name, values[name], used)
    if selects:
        what = f"'{shown}' may select what is learned, and is not read{count}"
        ways = {
            "scores": "keep one column that orders the answers, and remove the others",
            "swap": "exchange the answers of the rows that it marks, and remove the column",
            "label": "--config configs/kto.yaml, or keep the rows that are good, and remove the column",
            "weight": f"for a turn, {MARKED} in the message; for a row, --data.columns.weight {shown}; or {ignore}",
        }
        return RowError(what, excerpt_value(values[name]), ways[selects])
    what = f"'{shown}' has text that is not read, and the answer may depend on it{count}"
    way = f"--data.columns.{ours} {shlex.quote(shown)}" if ours and ours not in values else "write it into the prompt"
    return RowError(what, next(iterate_texts(values[name]), ""), f"{way}, or {ignore}")


def describe_unused(rows: Sequence[Row], columns: Collection[str], used: Collection[str]) -> list[str]:
    """The warnings about columns: those that nothing reads, and those for which a file used its own name instead.

    Args:
        rows: the rows.
        columns: all their columns.
        used: the columns that are read.
    """
    names = [name for name in columns if name not in used and not _is_silent(name)]
    displaced: set[str] = set()
    kept: dict[tuple[str, str, str], None] = {}
    for row in rows:
        displaced |= row.displaced
        kept |= {(row.origin.file, *pair): None for pair in sorted(row.kept)}
    names += sorted(displaced)
    lines = [
        f"{file} has no column '{excerpt_name(named)}': its '{ours}' is read instead" for file, named, ours in kept
    ]
    if names:
        shown = ", ".join(excerpt_name(name) for name in names[:MAX_NAMES])
        lines.append(f"columns that are not used: {shown}" + (", ..." if len(names) > MAX_NAMES else ""))
    return lines


def _is_silent(name: str) -> bool:
    return name in SILENT or name.startswith(META)
