"""`load_examples`: rows of files as examples of one kind, or every reason why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_lightning.data.examples import Example
from dpo_lightning.data.formats.columns import check_same_columns, names_in, rename, unused
from dpo_lightning.data.formats.context_columns import note_unread
from dpo_lightning.data.formats.duplicates import check_allowances, excerpt_text
from dpo_lightning.data.formats.row_format import RowFormat
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.invisible_characters import find_invisible_kinds
from dpo_lightning.data.readers.sources import Row, read_files
from dpo_lightning.errors import ExitCode, Problem, UserError

LEAST_ROWS = 2


def load_examples(
    kind: type[RowFormat],
    paths: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    lent: bool = False,
    allow: Collection[str] = (),
) -> tuple[list[Any], list[str]]:
    """Read rows as examples, and the warnings about them (each with a count and the first lines).

    Args:
        kind: the format of the rows.
        paths: a file or hub set, or several of one format.
        columns: our column name -> the file's.
        strict: treat warnings about rows as errors.
        lent: `columns` may be those of other rows: a file without them is read by our names.
        allow: `contradictions` lets rows pass that contradict one another.

    Raises:
        UserError: 64 for options, 65 naming every bad row, 66 for a source that is not there.
    """
    check_allowances(allow)
    bad = BadRows()
    notes = Notes(bad, strict=strict)
    rows = _read_rows(paths, kind, columns, bad, lent)
    reader = kind.choose(names_in(rows))(rows, columns or {}, bad, notes)
    examples = [example for row in rows for example in reader.read(row)]
    _check_kinds(examples, bad)
    reader.check(examples, allow, bad, notes)
    return examples, _warnings(rows, reader, bad, notes)


def _warnings(rows: Sequence[Row], reader: RowFormat, bad: BadRows, notes: Notes) -> list[str]:
    """The warnings about a set of rows; bad rows are raised first."""
    used = reader.used
    for row in rows:
        kinds = set().union(*(find_invisible_kinds(value) for name, value in row.values.items() if name in used))
        for kind in sorted(kinds):
            notes.add(row.origin, f"rows with {kind}", fix="remove the characters from the texts")
    unread = note_unread(rows, used, notes)
    bad.raise_if_any()
    return [*notes.format_lines(), *reader.context.lines(), *unused(rows, (*used, *unread))]


def _read_rows(
    paths: str | Sequence[str],
    kind: type[RowFormat],
    columns: Mapping[str, str] | None,
    bad: BadRows,
    lent: bool,
) -> list[Row]:
    """All rows under our names; what holds for the set as a whole is checked here."""
    found = list(read_files(paths, bad))
    if len(found) < LEAST_ROWS:
        bad.raise_if_any()
        raise UserError(ExitCode.DATA, Problem("only 1 row", where=str(found[0].origin)), fix="give at least 2 rows")
    rows = rename(found, columns, kind.known(), lent=lent)
    check_same_columns(rows, kind.columns)
    return rows


def _check_kinds(examples: Sequence[Example], bad: BadRows) -> None:
    """Text and messages do not mix: a model reads the one raw or as one turn, the other by its template."""
    if not examples:
        return
    first = examples[0]
    for example in examples:
        if isinstance(example.prompt, str) != isinstance(first.prompt, str):
            kinds = ("text", "messages") if isinstance(example.prompt, str) else ("messages", "text")
            what = f"the row is {kinds[0]}, where {first.origin} has {kinds[1]}"
            bad.add(
                example.origin,
                RowError(what, excerpt_text(example.prompt), "write all rows as text or all as messages"),
            )
