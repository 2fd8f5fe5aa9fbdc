"""Ranked lists without scores: their order is that of the file, unless another column orders the answers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from dpo_lightning.data.formats.comparisons import is_pointer
from dpo_lightning.data.formats.names import VERDICTS, find_preference, has_words
from dpo_lightning.data.formats.words import normalize_name, split_name
from dpo_lightning.data.kinds.columns import NO_TEXT
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import decode_json, excerpt_name, excerpt_value

LEAST = 2
SIZES = tuple(suffix for suffix in NO_TEXT if suffix != "_score")
"""Suffixes of columns whose numbers describe the answers, such as their lengths."""

CATEGORIES = frozenset(("label", "labels", "result"))
"""Names of verdicts that are also used for the category of a row, which is no number."""

INDEXES = frozenset(("best", "winner", "winning", "chosen"))
"""Words of columns with the number of the best answer, such as `best_idx`."""


def check_list_order(rows: Sequence[Row], bad: BadRows) -> None:
    """Report rows without scores beside rows with scores, and columns that may order the answers and are not read.

    Args:
        rows: rows of this package's format for ranked lists, before they are converted to another kind.
        bad: collects the errors; a column is reported once, at the first row that has it.
    """
    if any(row.values.get("scores") is not None for row in rows):
        for row in rows:
            if row.values.get("scores") is not None:
                continue
            what = "the row has no 'scores', and others have them, so that the order of its answers is unknown"
            bad.add(row.origin, RowError(what, fix="write scores in all rows or in none"))
        return
    reported = set()
    for row in rows:
        answers = _read_answers(row.values.get("responses"))
        for name, value in row.values.items():
            if answers and name not in reported and _orders(name, value, answers):
                reported.add(name)
                bad.refuse(row.origin, _describe(name, value))


def _read_answers(value: Any) -> list[Any]:
    """The list of answers; empty for anything else, which its kind reports."""
    try:
        found = decode_json(value, "responses", "")
    except RowError:
        return []
    return found if isinstance(found, list) else []


def _orders(name: str, value: Any, answers: Sequence[Any]) -> bool:
    """Whether a column may say which of the answers is best."""
    if name in ("prompt", "responses"):
        return False
    if isinstance(value, list):
        numbers = all(isinstance(item, (int, float)) for item in value) and not name.lower().endswith(SIZES)
        return numbers and LEAST <= len(value) == len(answers) and value != sorted(value, reverse=True)
    if value is None or not isinstance(value, (str, int, float)):
        return False
    if find_preference(name) == "chosen" and has_words(value):
        return value in answers[1:]
    word = normalize_name(name)
    named = word in VERDICTS and (word not in CATEGORIES or not isinstance(value, str) or value.strip().isdigit())
    return not has_words(value) and (named or is_pointer(name) or bool({*split_name(name)} & INDEXES))


def _describe(name: str, value: Any) -> RowError:
    """The error for a column that may order the answers."""
    shown = excerpt_name(name)
    what = f"'{shown}' may say which answer is best, and is not read: without 'scores', the first answer is the best"
    fix = "put the best answer first in every row, and remove the column"
    if isinstance(value, list):  # which flag is right depends on what the numbers mean, so that none is printed whole
        fix = (
            f"--data.columns.NAME {shlex.quote(name)}, where NAME is scores (the highest is the best) "
            f"or rank (the least is the best); or {fix}"
        )
    return RowError(what, excerpt_value(value), fix)
