"""Column names: the mapping from a file's names to ours, and suggestions for columns that are missing."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Mapping, Sequence

from dpo_lightning.data.kinds.turn_marks import MARKED, MARKS
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

SILENT = frozenset({"language", "id", "source", "__index_level_0__"})
"""Columns that are common in data sets and need no warning when they are not used."""

META = "meta"
"""Prefix of names that need no such warning either."""

MAX_NAMES = 20
"""Column names that one message lists at most."""


def rename(
    rows: Sequence[Row], columns: Mapping[str, str] | None, known: Collection[str], *, columns_optional: bool = False
) -> list[Row]:
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
        return list(rows)
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
    return [_rename_row(row, found[row.origin.file], columns) for row in rows]


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
    proposed = {ours: name for ours in needed if (name := find_look_alike(ours, free, needed))}
    named = [f"'{excerpt_name((columns or {}).get(ours, ours))}'" for ours in needed]
    flags = [f"--data.columns.{ours} {shlex.quote(proposed.get(ours, 'NAME'))}" for ours in needed]
    what = f"no row has the column{'s' if len(named) > 1 else ''} {', '.join(named)}"
    listed = ", ".join(excerpt_name(name) for name in found[:MAX_NAMES])
    return UserError(
        ExitCode.DATA,
        [Problem(f"{what}; the columns are {listed or '(none)'}", where=str(rows[0].origin))],
        fix=" ".join(flags) + ("" if len(proposed) == len(needed) else ", or rename the columns"),
    )


def find_look_alike(ours: str, found: Sequence[str], needed: Collection[str] = ()) -> str:
    """Find the column that probably holds `ours` under another name; "" where there is none."""
    texts = {
        name.lower(): name for name in found if not name.lower().endswith(NO_TEXT) and "system" not in name.lower()
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


def describe_unused(rows: Sequence[Row], used: Collection[str]) -> list[str]:
    """The warnings about columns: those that nothing reads, and those for which a file used its own name instead."""
    names = [
        name for name in count_columns(rows) if name not in used and name not in SILENT and not name.startswith(META)
    ]
    names += sorted(frozenset().union(*(row.displaced for row in rows)))
    kept = {(row.origin.file, *pair): None for row in rows for pair in sorted(row.kept)}
    lines = [
        f"{file} has no column '{excerpt_name(named)}': its '{ours}' is read instead" for file, named, ours in kept
    ]
    if selecting := [name for name in names if name.lower() in WEIGHTS or name.lower() in MARKS]:
        names = [name for name in names if name not in selecting]
        lines.append(
            f"columns that may select what is learned, and are not read: {', '.join(map(excerpt_name, selecting))} "
            f"(for a turn, {MARKED} in the message; for a row, use the column 'weight')"
        )
    if names:
        shown = ", ".join(excerpt_name(name) for name in names[:MAX_NAMES])
        lines.append(f"columns that are not used: {shown}" + (", ..." if len(names) > MAX_NAMES else ""))
    return lines


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


def refuse_unpaired(rows: Sequence[Row], names: Collection[str], verdicts: Collection[str] = ()) -> None:
    """Refuse unpaired rows where pairs or SFT rows are read: SFT would also train on the answers labelled bad.

    Args:
        rows: the rows.
        names: their columns.
        verdicts: labels that judge an answer; rows with other labels pass. If empty, every label judges one.

    Raises:
        UserError: 65, with the first such row.
    """
    if "label" not in names or "completion" not in names or "chosen" in names:
        return
    for row in rows:
        label = row.values.get("label")
        if not verdicts or str(label).strip().lower() in verdicts:
            raise UserError(
                ExitCode.DATA,
                Problem("this is unpaired data (completion and label)", str(row.origin), f"label: {label}"),
                fix="--config configs/kto.yaml (KTOModule with UnpairedDataModule); or give pairs (prompt, chosen, "
                "rejected); for SFT keep the good rows without the label",
            )
