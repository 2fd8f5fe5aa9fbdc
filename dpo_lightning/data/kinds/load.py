"""`load_examples`: reads files as examples of one kind, and reports every bad row in one error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_lightning.data.examples import Example
from dpo_lightning.data.kinds.columns import check_same_columns, count_columns, describe_unused, rename
from dpo_lightning.data.kinds.context_columns import note_unread
from dpo_lightning.data.kinds.duplicates import check_allowances, excerpt_text
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.invisible_characters import find_invisible_kinds
from dpo_lightning.data.readers.sources import Row, read_files
from dpo_lightning.errors import ExitCode, Problem, UserError

LEAST_ROWS = 2
"""Rows that a set needs; a single one is more likely a wrong file than a data set."""


def load_examples(
    kind: type[RowKind],
    paths: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    columns_optional: bool = False,
    allow: Collection[str] = (),
) -> tuple[list[Any], list[str]]:
    """Read the rows of files as examples; also return the warnings about them, with counts and the first lines.

    Args:
        kind: the kind of the rows.
        paths: a file or hub set, or several of one kind.
        columns: our column name -> the file's.
        strict: treat warnings about rows as errors.
        columns_optional: see `columns.rename`.
        allow: `contradictions` accepts rows that contradict one another, with a warning.

    Raises:
        UserError: 64 for a wrong option, 65 for bad rows (all of them), 66 for a source that does not exist.
    """
    check_allowances(allow)
    bad = BadRows()
    notes = Notes(bad, strict=strict)
    file_notes: list[str] = []
    rows = _read_rows(paths, kind, columns, bad, columns_optional, file_notes)
    reader = kind.choose(count_columns(rows))(rows, columns or {}, bad, notes)
    used = reader.used
    examples = [example for row in rows if not row.add_faults(used, bad) for example in reader.read(row)]
    _check_kinds(examples, bad)
    reader.check(examples, allow, bad, notes)
    return examples, [*file_notes, *_warnings(rows, reader, bad, notes)]


def _warnings(rows: Sequence[Row], reader: RowKind, bad: BadRows, notes: Notes) -> list[str]:
    """The warnings about a set of rows; raises the error about bad rows, if there are any."""
    used = reader.used
    for row in rows:
        kinds = set().union(*(find_invisible_kinds(value) for name, value in row.values.items() if name in used))
        for kind in sorted(kinds):
            notes.add(row.origin, f"rows with {kind}", fix="remove the characters from the texts")
    unread = note_unread(rows, used, notes)
    bad.raise_if_any()
    return [*notes.format_lines(), *reader.context.lines(), *describe_unused(rows, (*used, *unread))]


def _read_rows(
    paths: str | Sequence[str],
    kind: type[RowKind],
    columns: Mapping[str, str] | None,
    bad: BadRows,
    columns_optional: bool,
    file_notes: list[str],
) -> list[Row]:
    """Read all rows with columns renamed to ours, and check the set as a whole: its size and columns."""
    found = list(read_files(paths, bad, file_notes))
    if len(found) < LEAST_ROWS:
        bad.raise_if_any()
        raise UserError(
            ExitCode.DATA, Problem("there is only 1 row", where=str(found[0].origin)), fix="give at least 2 rows"
        )
    rows = rename(found, columns, kind.known(), columns_optional=columns_optional)
    check_same_columns(rows, kind.columns)
    return rows


def _check_kinds(examples: Sequence[Example], bad: BadRows) -> None:
    """Check that all prompts are text or all are messages; only messages always go through the chat template."""
    if not examples:
        return
    first = examples[0]
    for example in examples:
        if isinstance(example.prompt, str) != isinstance(first.prompt, str):
            kinds = ("text", "messages") if isinstance(example.prompt, str) else ("messages", "text")
            what = f"the prompt is {kinds[0]}, but {first.origin} has {kinds[1]}"
            bad.add(
                example.origin,
                RowError(what, excerpt_text(example.prompt), "write all rows as text or all as messages"),
            )
