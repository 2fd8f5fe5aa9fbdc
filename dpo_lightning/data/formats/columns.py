"""Column names: which are used, what a file calls them, and what it may have meant."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Mapping, Sequence

from dpo_lightning.data.formats.turn_marks import MARKED, MARKS
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
"""Words in other sets' column names (`response_chosen`, `gpt4_response`), for proposals only."""

NO_TEXT = ("_id", "_hash", "_len", "_length", "_score", "_tokens", "_model")
"""Ends of names of columns that tell something about a text."""

WEIGHTS = frozenset(("weights", "loss_weight", "loss_weights", "sample_weight", "mask_history"))
"""Columns of other tools that say what is learned, besides those named as the mark of a turn."""

SILENT = frozenset({"language", "id", "source", "__index_level_0__"})
META = "meta"
MAX_NAMES = 20


def rename(
    rows: Sequence[Row], columns: Mapping[str, str] | None, known: Collection[str], *, lent: bool = False
) -> list[Row]:
    """The rows under our names, where `columns` says what the file calls them.

    A file without the named column, which has one of our name, keeps its own: training and held-out files may differ.
    Unless the names were meant for other rows (`lent`), some file has to have the column: a misspelt name is told.

    Raises:
        UserError: 64 for a name that is none of the `known`, or a column of the file that is named twice; 65 for a
            column that is nowhere.
    """
    if not columns:
        return list(rows)
    for ours in columns:
        if ours not in known:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"'{excerpt_name(ours)}' is no column of this format", where=f"data.columns.{ours}"),
                fix="one of " + ", ".join(known),
            )
    if len(set(columns.values())) < len(columns):
        raise UserError(
            ExitCode.CONFIG,
            Problem("one column of the file is named twice", where="data.columns"),
            fix="name another column for each",
        )
    theirs = {name: ours for ours, name in columns.items()}
    there: dict[str, set[str]] = {}
    for row in rows:
        there.setdefault(row.origin.file, set()).update(row.values)
    nowhere = [ours for name, ours in theirs.items() if name not in set().union(*there.values())]
    if nowhere and not lent:
        raise missing_columns(nowhere, rows, columns)
    found = {
        file: {name: ours for name, ours in theirs.items() if name in names or ours not in names}
        for file, names in there.items()
    }
    return [_renamed(row, found[row.origin.file], columns) for row in rows]


def _renamed(row: Row, theirs: Mapping[str, str], columns: Mapping[str, str]) -> Row:
    mapped = set(theirs.values())
    displaced = [name for name in row.values if name in mapped and name not in theirs]
    return row._replace(
        values={theirs.get(name, name): value for name, value in row.values.items() if name not in displaced},
        recomposed=frozenset(theirs.get(name, name) for name in row.recomposed if name not in displaced),
        displaced=frozenset(displaced),
        kept=frozenset((columns[name], name) for name in columns if name in row.values.keys() - mapped - theirs.keys()),
    )


def names_in(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows have each column."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row.values:
            counts[name] = counts.get(name, 0) + 1
    return counts


def missing_columns(needed: Sequence[str], rows: Sequence[Row], columns: Mapping[str, str] | None) -> UserError:
    """What to tell a user whose rows all lack `needed`: the columns found, and the mapping they may mean."""
    found = list(names_in(rows))
    free = [name for name in found if name not in needed and name not in (columns or {}).values()]
    proposed = {ours: name for ours in needed if (name := look_alike(ours, free, needed))}
    named = [f"'{excerpt_name((columns or {}).get(ours, ours))}'" for ours in needed]
    flags = [f"--data.columns.{ours} {shlex.quote(proposed.get(ours, 'NAME'))}" for ours in needed]
    what = f"no row has the column{'s' if len(named) > 1 else ''} {', '.join(named)}"
    listed = ", ".join(excerpt_name(name) for name in found[:MAX_NAMES])
    return UserError(
        ExitCode.DATA,
        [Problem(f"{what}; the columns are {listed or '(none)'}", where=str(rows[0].origin))],
        fix=" ".join(flags) + ("" if len(proposed) == len(needed) else ", or rename the columns"),
    )


def look_alike(ours: str, found: Sequence[str], needed: Collection[str] = ()) -> str:
    """The column that probably is `ours` under another name, or nothing."""
    texts = {
        name.lower(): name for name in found if not name.lower().endswith(NO_TEXT) and "system" not in name.lower()
    }
    close = difflib.get_close_matches(ours, texts, 1, 0.75)
    if close:
        return texts[close[0]]
    others = [word for name in needed if name != ours for word in (name, *ALIASES.get(name, ()))]
    for word in (ours, *ALIASES.get(ours, ())):
        # "preferred" is in "dispreferred", which is a word for another column
        longer = [other for other in others if word in other]
        for lower, name in texts.items():
            if word in lower and not any(other in lower for other in longer):
                return name
    return ""


def unused(rows: Sequence[Row], used: Collection[str]) -> list[str]:
    """A warning that names the columns which are read by nobody, and one per column that was not found as named."""
    names = [name for name in names_in(rows) if name not in used and name not in SILENT and not name.startswith(META)]
    names += sorted(frozenset().union(*(row.displaced for row in rows)))
    kept = {(row.origin.file, *pair): None for row in rows for pair in sorted(row.kept)}
    lines = [
        f"{file} has no column '{excerpt_name(named)}': its '{ours}' is read instead" for file, named, ours in kept
    ]
    if said := [name for name in names if name.lower() in WEIGHTS or name.lower() in MARKS]:
        names = [name for name in names if name not in said]
        lines.append(
            f"columns that may say what is learned, and are not read: {', '.join(map(excerpt_name, said))} "
            f"(of a turn, {MARKED} in the message; of a row, 'weight')"
        )
    if names:
        shown = ", ".join(excerpt_name(name) for name in names[:MAX_NAMES])
        lines.append(f"columns that are not used: {shown}" + (", ..." if len(names) > MAX_NAMES else ""))
    return lines


def check_same_columns(rows: Sequence[Row], formats: Collection[str]) -> None:
    """Refuse files of different format in one set.

    Args:
        rows: the rows of all files.
        formats: the columns that make the format; others may differ from file to file.

    Raises:
        UserError: 65, with the columns of both.
    """
    files: dict[str, tuple[Row, set[str]]] = {}
    for row in rows:
        _, names = files.setdefault(row.origin.file, (row, set()))
        names.update(name for name in row.values if name in formats)
    (first, expected), *others = files.values()
    for row, names in others:
        if names != expected:
            there, here = (", ".join(sorted(names)) or "none of ours" for names in (expected, names))
            raise UserError(
                ExitCode.DATA,
                Problem(f"another format than {first.origin.file}", str(row.origin), f"{here}; there: {there}"),
                fix="give both files the same columns, or train on them one after the other",
            )


def refuse_unpaired(rows: Sequence[Row], names: Collection[str], verdicts: Collection[str] = ()) -> None:
    """Refuse unpaired rows: they must neither be read as pairs nor be imitated, good and bad alike.

    Args:
        rows: the rows.
        names: their columns.
        verdicts: labels that judge an answer; any label does where none are given.

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
                fix="--config configs/kto.yaml (--data UnpairedDataModule); or give pairs (prompt, chosen, rejected); "
                "for SFT keep the good rows without the label",
            )
