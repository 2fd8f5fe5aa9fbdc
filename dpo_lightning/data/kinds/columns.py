"""Column names: the mapping from a file's names to ours, and suggestions for columns that are missing."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_lightning.data.cache.spilled_list import SpilledList
from dpo_lightning.data.formats.names import VERDICTS, find_preference, has_negation, has_words
from dpo_lightning.data.formats.words import normalize_name
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name
from dpo_lightning.errors import ExitCode, Problem, UserError

QUESTIONS = (
    "question",
    "query",
    "instruction",
    "input",
    "user",
    "context",
    "request",
    "질문",
    "지시",
    "프롬프트",
)
ANSWERS = ("response", "answer", "output", "completion", "reply", "target", "chosen", "답변", "응답")
ALIASES = {
    "prompt": QUESTIONS,
    "chosen": ("preferred", "winner", "better", "positive", "accepted", "good", "gpt4", "gpt_4", "선택"),
    "rejected": (
        "reject",
        "dispreferred",
        "loser",
        "worse",
        "negative",
        "bad",
        "gpt3",
        "chatgpt",
        "llama",
        "거절",
    ),
    "completion": ANSWERS,
    "label": ("labels", "thumb", "verdict", "feedback", "liked", "desirable", "평가"),
    "messages": ("conversation", "dialog", "chat", "turns"),
    "instruction": ("prompt", *QUESTIONS),
    "output": ANSWERS,
}
"""Words in the column names of other data sets (`response_chosen`, `gpt4_response`); used for suggestions only."""

NO_TEXT = ("_id", "_hash", "_len", "_length", "_score", "_tokens", "_model")
"""Suffixes of columns that describe a text and do not contain one; they are never suggested."""

WEIGHTS = frozenset(("weights", "loss_weight", "loss_weights", "sample_weight", "mask_history"))
"""Columns by which other tools select what is trained on, besides those named like the mark of a turn."""

NO_TEXTS = frozenset(("label", "scores", "weight", "margin"))
"""Our columns whose values are not texts."""

ENDING = re.compile(r"(?<=.)[_\- ]?(?:\d+|[A-Ea-e]|[jk])$")
"""The end of a name by which answers of a row are numbered."""

SENTENCE = re.compile(r"[.?!。？！]\s*\Z|\A\d+\Z|(?:\S+\s+){5}")
"""Names of columns that are rather values of the first row."""

COMPARED = {"chosen": "answer_1", "rejected": "answer_2"}
"""Our columns of a pair -> those of a comparison, whose verdict says which answer is better."""

MOST_VERDICTS = 4
"""Different values of a verdict: both answers and ties; a column with more has something else."""

MAX_LOOKED_AT = 100
"""Rows whose values decide whether a column has texts."""

MAX_NAMES = 20
"""Column names that one message lists at most."""


def rename(
    rows: Sequence[Row], columns: Mapping[str, str] | None, known: Collection[str], *, columns_optional: bool = False
) -> Sequence[Row]:
    """Rename the columns of rows from the file's names to ours.

    A file that lacks the mapped column but has one of our name keeps its own: training and held-out files may differ.

    Args:
        rows: the rows of all files of a set.
        columns: our column name -> the file's.
        known: our column names.
        columns_optional: accept a mapped column that no file has; by default it is an error, since the name may be
            misspelt. For held-out rows, whose `columns` are those of the training rows.

    Raises:
        UserError: 64 for a name that is not `known`, or a column of the file that is mapped twice; 65 for a column that
            no file has.
    """
    if not columns:
        return rows
    for ours in columns:
        if ours not in known:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"'{excerpt_name(ours)}' is not a column of these rows", where=f"data.columns.{ours}"),
                fix="use one of " + ", ".join(known),
            )
    if len(set(columns.values())) < len(columns):
        raise UserError(
            ExitCode.CONFIG,
            Problem("the same column of the file is mapped to two of ours", where="data.columns"),
            fix="map a different column to each name",
        )
    theirs = {name: ours for ours, name in columns.items()}
    present: dict[str, set[str]] = {}  # by file
    for row in rows:
        present.setdefault(row.origin.file, set()).update(row.values)
    missing = [ours for name, ours in theirs.items() if name not in set().union(*present.values())]
    if missing and not columns_optional:
        raise missing_columns(missing, rows, columns)
    found = {
        file: {name: ours for name, ours in theirs.items() if name in names or ours not in names}
        for file, names in present.items()
    }
    return SpilledList(_rename_row(row, found[row.origin.file], columns) for row in rows)


def remove_columns(rows: Sequence[Row], names: Collection[str], *, columns_optional: bool = False) -> Sequence[Row]:
    """Remove columns from rows.

    Args:
        rows: the rows of a set.
        names: the file's names of the columns.
        columns_optional: accept a name that no row has.

    Raises:
        UserError: 65, no row has a column of a name, which may be misspelt.
    """
    if not names:
        return rows
    found = count_columns(rows)
    for name in names:
        if name not in found and not columns_optional:
            listed = ", ".join(excerpt_name(other) for other in list(found)[:MAX_NAMES])
            problem = Problem(
                f"no row has the column '{excerpt_name(name)}'; the columns are {listed}", "data.ignore_columns"
            )
            raise UserError(ExitCode.DATA, problem, fix="name columns of the file")
    return SpilledList(_remove_columns(row, names) for row in rows)


def _remove_columns(row: Row, names: Collection[str]) -> Row:
    values = {name: value for name, value in row.values.items() if name not in names}
    return row._replace(values=values, faults={name: error for name, error in row.faults.items() if name in values})


def _rename_row(row: Row, theirs: Mapping[str, str], columns: Mapping[str, str]) -> Row:
    """Rename the columns of one row.

    Args:
        row: the row.
        theirs: the file's column name -> ours, for the columns that this file has.
        columns: our column name -> the file's, as the user gave it.
    """
    mapped = set(theirs.values())
    # A column of our name gives way to the one that is mapped to it.
    displaced = [name for name in row.values if name in mapped and name not in theirs]
    return row._replace(
        values={theirs.get(name, name): value for name, value in row.values.items() if name not in displaced},
        recomposed=frozenset(theirs.get(name, name) for name in row.recomposed if name not in displaced),
        faults={theirs.get(name, name): error for name, error in row.faults.items() if name not in displaced},
        displaced=frozenset(displaced),
        kept=frozenset((columns[name], name) for name in columns if name in row.values.keys() - mapped - theirs.keys()),
    )


def count_columns(rows: Sequence[Row]) -> dict[str, int]:
    """Count the rows that have each column, in the order in which the columns first appear."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row.values:
            counts[name] = counts.get(name, 0) + 1
    return counts


def missing_columns(needed: Sequence[str], rows: Sequence[Row], columns: Mapping[str, str] | None) -> UserError:
    """The error for rows that all lack `needed`; it lists the columns that were found and suggests a mapping."""
    found = list(count_columns(rows))
    free = [name for name in found if name not in needed and name not in (columns or {}).values()]
    free = [name for name in free if not _is_one_of_several(name, found)]
    texts = [name for name in free if not _is_verdict(name, [row.values.get(name) for row in rows[:MAX_LOOKED_AT]])]
    proposed = {
        ours: name for ours in needed if (name := find_look_alike(ours, free if ours in NO_TEXTS else texts, needed))
    }
    named = [f"'{excerpt_name((columns or {}).get(ours, ours))}'" for ours in needed]
    verdict = _find_verdict(free, rows) if {"chosen", "rejected"} <= {*needed} else ""
    if verdict:  # each row says which of the two answers is better
        proposed = {COMPARED.get(ours, ours): name for ours, name in proposed.items()} | {"verdict": verdict}
        needed = [*(COMPARED.get(ours, ours) for ours in needed), "verdict"]
    flags = [f"--data.columns.{ours} {shlex.quote(proposed.get(ours, 'NAME'))}" for ours in needed]
    what = f"no row has the column{'s' if len(named) > 1 else ''} {', '.join(named)}"
    listed = ", ".join(excerpt_name(name) for name in found[:MAX_NAMES])
    if not proposed and any(map(SENTENCE.search, found)):
        listed += " (as a table without a header has them)"
        flags = [f"write a line with the names of the columns before the first row: {','.join(needed)}; or", *flags]
    return UserError(
        ExitCode.DATA,
        [Problem(f"{what}; the columns are {listed or '(none)'}", where=str(rows[0].origin))],
        fix=" ".join(flags) + ("" if len(proposed) == len(needed) else ", or rename the columns"),
    )


def _find_verdict(names: Sequence[str], rows: Sequence[Row]) -> str:
    """The column that by name and values says which of two answers is better; "" for none."""
    for name in names:
        values = [value for row in rows[:MAX_LOOKED_AT] if (value := row.values.get(name)) is not None]
        short = all(isinstance(value, (str, int, float)) for value in values) and not any(map(has_words, values))
        if normalize_name(name) in VERDICTS and values and short and len({*values}) <= MOST_VERDICTS:
            return name
    return ""


def find_look_alike(ours: str, found: Sequence[str], needed: Collection[str] = ()) -> str:
    """Find the column that probably holds `ours` under another name; "" where there is none."""
    other = {"chosen": "rejected", "rejected": "chosen"}.get(ours, "")
    texts = {
        name.lower(): name
        for name in found
        if not name.lower().endswith(NO_TEXT) and "system" not in name.lower() and not _means(name, other)
    }
    close = difflib.get_close_matches(ours, texts, 1, 0.75)
    if close:
        return texts[close[0]]
    others = [word for name in needed if name != ours for word in (name, *ALIASES.get(name, ()))]
    for word in (ours, *ALIASES.get(ours, ())):
        # A substring is not enough: "preferred" is in "dispreferred", which is a word for another column.
        longer = [other for other in others if word in other]
        for lower, name in texts.items():
            if word in lower and not any(other in lower for other in longer):
                return name
    return ""


def _means(name: str, other: str) -> bool:
    """Whether the words of a name say that the column has the `other` answer, or turn the meaning of a word round."""
    return bool(other) and (find_preference(name) == other or (other == "rejected" and has_negation(name)))


def _is_one_of_several(name: str, found: Sequence[str]) -> bool:
    """Whether a column differs from another one in its last letter or digit only, as `response_1` and `response_2`."""
    stem = ENDING.sub("", name)
    return stem != name and any(ENDING.sub("", other) == stem for other in found if other != name)


def _is_verdict(name: str, values: Sequence[Any]) -> bool:
    """Whether a column has numbers, or by name and values points to another column, as `winner` with `b`."""
    if not any(isinstance(value, (str, list, dict)) for value in values):
        return any(value is not None for value in values)
    return normalize_name(name) in VERDICTS and not any(map(has_words, values))


def check_same_columns(rows: Sequence[Row], defining: Collection[str]) -> None:
    """Check that all files of one set have the same columns.

    Args:
        rows: the rows of all files.
        defining: the columns that define the kind; others may differ from file to file.

    Raises:
        UserError: 65, with the columns of both files.
    """
    files: dict[str, tuple[Row, set[str]]] = {}
    for row in rows:
        _, names = files.setdefault(row.origin.file, (row, set()))
        names.update(name for name in row.values if name in defining)
    (first, expected), *others = files.values()
    for row, names in others:
        if names != expected:
            there, here = (", ".join(sorted(names)) or "none of the format" for names in (expected, names))
            raise UserError(
                ExitCode.DATA,
                Problem(
                    f"the columns differ from those of {first.origin.file}", str(row.origin), f"{here}; there: {there}"
                ),
                fix="give both files the same columns, or train on them one after the other",
            )
