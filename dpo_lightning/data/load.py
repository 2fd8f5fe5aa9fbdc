"""`load_examples`: reads files as examples of one kind, and reports every bad row in one error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_lightning.data.examples import Example
from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.between_kinds import convert_kind
from dpo_lightning.data.formats.own import OwnFormat
from dpo_lightning.data.formats.recognition import AUTO, MAPPABLE, OWN, RECIPES, TAKEN, find_format, recognize
from dpo_lightning.data.kinds.columns import check_same_columns, count_columns, rename
from dpo_lightning.data.kinds.duplicates import check_allowances, excerpt_text
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.unread_columns import check_unread, describe_unused
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
    format: str = AUTO,
    ignore_columns: Collection[str] = (),
    first_wins: str | int | None = None,
) -> tuple[list[Any], list[str]]:
    """Read the rows of files as examples; also return the warnings about them, with counts and the first lines.

    Args:
        kind: the kind of the rows.
        paths: a file or hub set, or several of one kind.
        columns: our column name -> the file's.
        strict: treat warnings about rows as errors.
        columns_optional: see `columns.rename`.
        allow: `contradictions` accepts rows that contradict one another, with a warning.
        format: the name of the format of the rows, or `auto`, which recognizes it.
        ignore_columns: columns that are left aside although the answers may depend on them.
        first_wins: for rows of two answers and a verdict, the value with which the first answer wins.

    Raises:
        UserError: 64 for a wrong option, 65 for bad rows (all of them), 66 for a source that does not exist.
    """
    check_allowances(allow)
    bad = BadRows()
    notes = Notes(bad, strict=strict)
    found = _read_rows(paths, kind, columns, bad, columns_optional)
    converter = _choose_format(found, kind, format)
    converter.configure(columns, first_wins)
    rows = _convert_rows(found, converter, kind, bad, notes)
    check_same_columns(rows, kind.columns)
    names = {**converter.renames, **(columns or {})}
    reader = kind.choose(count_columns(rows))(rows, names, bad, notes)
    examples = [example for row in rows for example in reader.read(row)]
    _check_kinds(examples, bad)
    guessed = converter.renames if converter.guesses else None
    check_unread(rows, reader.used, ignore_columns, examples, bad, guessed=guessed)
    reader.check(examples, allow, bad, notes)
    _note_invisible(rows, reader.used, notes)
    bad.raise_if_any()
    lines = [] if isinstance(converter, OwnFormat) else [f"read as: {converter.describe()}"]
    unused = describe_unused(rows, reader.used, ignore_columns)
    return examples, [*lines, *notes.format_lines(), *reader.context.lines(), *unused]


def _read_rows(
    paths: str | Sequence[str],
    kind: type[RowKind],
    columns: Mapping[str, str] | None,
    bad: BadRows,
    columns_optional: bool,
) -> list[Row]:
    """Read all rows with the columns that the user named renamed to ours, and check the size of the set."""
    found = list(read_files(paths, bad))
    if len(found) < LEAST_ROWS:
        bad.raise_if_any()
        raise UserError(
            ExitCode.DATA, Problem("there is only 1 row", where=str(found[0].origin)), fix="give at least 2 rows"
        )
    known = kind.known() if kind.reads is None else (*kind.known(), *MAPPABLE)
    return rename(found, columns, known, columns_optional=columns_optional)


def _choose_format(rows: Sequence[Row], kind: type[RowKind], name: str) -> Format:
    """Create the converter of the format that the user named, or that recognizes the rows."""
    chosen = find_format(name)
    if kind.reads is None:
        return OwnFormat(rows)
    if chosen is None:
        return recognize(rows, kind.reads)(rows)
    if chosen.kind not in TAKEN[kind.reads]:
        raise UserError(
            ExitCode.CONFIG,
            Problem(
                f"rows of the format {name} are {OWN[chosen.kind].title}, which this module does not take",
                "data.format",
            ),
            fix=f"--config {RECIPES[chosen.kind]}",
        )
    return chosen(rows)


def _convert_rows(rows: Sequence[Row], converter: Format, kind: type[RowKind], bad: BadRows, notes: Notes) -> list[Row]:
    """Convert rows to our columns of the kind that is read."""
    if kind.reads is None or (isinstance(converter, OwnFormat) and kind.reads == converter.kind):
        return list(rows)
    converted = []
    for row in converter.convert_rows(rows, bad, notes):
        try:
            converted.append(row._replace(values=convert_kind(row.values, converter.kind, kind.reads)))
        except RowError as error:
            bad.add(row.origin, error)
    if not converted:
        bad.raise_if_any()
        problem = Problem(f"no row is left: {'; '.join(notes.format_lines())}", where=str(rows[0].origin))
        raise UserError(ExitCode.DATA, problem, fix="give rows that prefer one answer")
    return converted


def _note_invisible(rows: Sequence[Row], used: Collection[str], notes: Notes) -> None:
    """Note rows that have invisible characters in a column that is read."""
    for row in rows:
        kinds = set().union(*(find_invisible_kinds(value) for name, value in row.values.items() if name in used))
        for kind in sorted(kinds):
            notes.add(row.origin, f"rows with {kind}", fix="remove the characters from the texts")


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
