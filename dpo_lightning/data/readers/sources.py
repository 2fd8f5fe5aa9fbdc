"""Rows of files and of data sets of the hub, each with its origin: the format is recognized by the content."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.arrow_files import is_arrow, read_arrow_rows
from dpo_lightning.data.readers.arrow_rows import HUB, check_hub_id, read_hub_rows, read_parquet_rows
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.csv_rows import parse_csv_rows
from dpo_lightning.data.readers.excel import read_workbook_rows
from dpo_lightning.data.readers.folders import list_files
from dpo_lightning.data.readers.json_rows import parse_json_rows
from dpo_lightning.data.readers.left_out import format_places
from dpo_lightning.data.readers.paths import check_path, format_path
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_cleaning import clean
from dpo_lightning.data.readers.text_files import open_content, open_text
from dpo_lightning.data.readers.text_window import TextWindow
from dpo_lightning.data.readers.yaml_rows import parse_yaml_rows
from dpo_lightning.errors import ExitCode, Problem, UserError

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
YAML_SUFFIXES = (".yaml", ".yml")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
PARQUET = b"PAR1"

PYTHON = re.compile(r"\[?\s*\{\s*'")
"""The beginning of a row that was printed by Python."""

LITERALS = "[ast.literal_eval(line) for line in {} if line.strip()]"
"""The Python expression that parses such rows, one on each line."""

LONGEST_START = 200
"""Characters of a text by which its format is recognized."""

NO_FAULTS: Mapping[str, RowError] = {}


class Row(NamedTuple):
    """One row with the columns of its source.

    The reader sets `origin`, `values`, `recomposed` and `faults`; the others belong to `--data.columns`, the user's
    names for columns of a format.

    Attributes:
        origin: the file and the line where the row begins (the row's number in a table, which has no lines).
        values: text or other values by column; every string is in NFC and free of control characters. None for a
            column with a fault.
        recomposed: columns whose text was not in NFC before.
        displaced: columns with a name of the format that are not used, because the user named others for them.
        kept: columns that the user named and the row lacks, each with the format's own name that is used instead.
        faults: why the text of a column cannot be used; an error only where the column is read.
    """

    origin: Origin
    values: dict[str, Any]
    recomposed: frozenset[str] = frozenset()
    displaced: frozenset[str] = frozenset()
    kept: frozenset[tuple[str, str]] = frozenset()
    faults: Mapping[str, RowError] = NO_FAULTS

    def add_faults(self, used: Collection[str], bad: BadRows) -> bool:
        """Add the faults of the columns that are read to `bad`; return whether there are any."""
        found = [error for name, error in self.faults.items() if name in used] if self.faults else []
        for error in found:
            bad.add(self.origin, error)
        return bool(found)


def read_files(
    paths: str | Sequence[str],
    bad: BadRows | None = None,
    notes: list[str] | None = None,
    text_column: str | None = None,
) -> Iterator[Row]:
    """Read one or several sources one after the other; all paths are checked before the first is read.

    Args:
        paths: files, folders, patterns and hub ids.
        bad: receives the errors of rows; if None, they are raised together after the last row.
        notes: receives one line for each thing that was guessed, after the last row.
        text_column: the column of a row that is a text and not an object; if None, such a row is bad.

    Raises:
        UserError: as in `read_rows`; 64 if `paths` is empty.
    """
    sources = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not sources:
        raise UserError(ExitCode.CONFIG, "no data file is given", fix="name at least one file")
    for path in map(os.fspath, sources):
        check_source(path)
    collected = BadRows() if bad is None else bad
    for path in sources:
        yield from _read_source(os.fspath(path), collected, notes, keep_faults=bad is not None, text_column=text_column)
    if bad is None:
        collected.raise_if_any()


def read_rows(path: str, bad: BadRows | None = None, notes: list[str] | None = None) -> Iterator[Row]:
    """Read the rows of a file, of the files of a folder, or of a data set of the hub (`hf://org/name`).

    Files are JSON, JSON lines, CSV or YAML, each also compressed (gzip, bzip2, xz, zip); parquet, Arrow or Feather; or
    Excel workbooks. The format is recognized by the content; the suffix only decides whether text that does not begin
    like JSON is a damaged JSON file, YAML or CSV.

    Args:
        path: a file, a folder, a pattern with `*`, or a hub id.
        bad: receives the errors of rows; if None, they are raised together after the last row, and so are the faults
            of all columns.
        notes: receives one line for each thing that was guessed, after the last row.

    Raises:
        UserError: 64 for a URL, 65 for a file without rows or of another format, 66 if the source does not exist or
            cannot be opened, 74 if reading fails.
    """
    collected = BadRows() if bad is None else bad
    yield from _read_source(os.fspath(path), collected, notes, keep_faults=bad is not None)
    if bad is None:
        collected.raise_if_any()


def check_source(path: str) -> None:
    """Check that a source can be opened, without reading its rows.

    Raises:
        UserError: as in `read_rows`.
    """
    if path.startswith(HUB):
        check_hub_id(path)
        return
    for file in list_files(path):
        check_path(file)


def _read_source(
    path: str, bad: BadRows, notes: list[str] | None, *, keep_faults: bool, text_column: str | None = None
) -> Iterator[Row]:
    """Read the files of one source; see `read_rows`. Without `keep_faults`, the faults of all columns are errors."""
    guesses: dict[str, list[str]] = {}  # what was guessed -> the names of files
    chosen: list[str] = []
    files = [path] if path.startswith(HUB) else list_files(path, chosen)
    empty = True
    for file in files:
        before, nth = 0, 1
        with ExitStack() as stack:
            source, values = _open_rows(file, bad, stack)
            for line, value in values:
                # An array may have several rows on one line: `nth` counts them.
                empty, nth, before = False, nth + 1 if line == before else 1, line
                origin = Origin(source.name, line, nth)
                if text_column is not None and isinstance(value, str):
                    value = {text_column: value}
                try:
                    row = _make_row(origin, value, source)
                except RowError as error:
                    bad.add(origin, error)
                else:
                    if row.faults and not keep_faults:
                        bad.add(origin, next(iter(row.faults.values())))
                    else:
                        yield row
        for note in source.notes:
            guesses.setdefault(note, []).append(source.name)
    if empty and not bad:
        raise UserError(
            ExitCode.DATA,
            Problem("the source has no rows", where=f"{format_path(path)}:1"),
            fix="name a source with rows",
        )
    if notes is not None:
        notes += [f"{format_path(path)}: {text}" for text in chosen]
        notes += [f"{format_places(names)}: {note}" for note, names in guesses.items()]


def _make_row(origin: Origin, value: Any, source: Source) -> Row:
    if not isinstance(value, dict):
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            fix = source.format_conversion("jq -c '.. | strings | fromjson'", "decoded", ".jsonl")
            raise RowError("the row is JSON inside a JSON string", value, fix)
        fix = 'write each row as an object, like {"prompt": ..., "chosen": ..., "rejected": ...}'
        shown = "" if isinstance(value, list) else value
        raise RowError(f"the row is {kind_of(value)}, not an object", shown, fix)
    values, recomposed, faults = clean(value)
    return Row(origin, values, recomposed, faults=faults or NO_FAULTS)


def kind_of(value: object) -> str:
    """Name the JSON type of a value with its article, for a message: `a number`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = {
        str: "text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "binary data",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def _open_rows(path: str, bad: BadRows, stack: ExitStack) -> tuple[Source, Iterator[tuple[int, Any]]]:
    """The name of a source, and the line and value of each row, read by the reader for its first bytes.

    `stack` closes the files that are read.
    """
    if path.startswith(HUB):
        return Source(format_path(path)), read_hub_rows(path)
    content = stack.enter_context(open_content(path))
    source = content.source
    if content.workbook:
        return source, read_workbook_rows(content.read_data(), source, bad)
    head = content.read_head()
    content.file.seek(0)
    if head.startswith(PARQUET):
        return source, read_parquet_rows(content.file, source.name)
    if is_arrow(head):
        return source, read_arrow_rows(content.file, source)
    return source, _parse_text(open_text(content), source, bad)


def _parse_text(window: TextWindow, source: Source, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Choose the parser for a text."""
    start = _read_start(window)
    if source.plain.endswith(TABLE_SUFFIXES) and start:
        kind = source.plain.rpartition(".")[2]
        raise UserError(
            ExitCode.DATA,
            Problem(f"not {'an' if kind == 'arrow' else 'a'} {kind} file", where=f"{source.name}:1"),
            fix="rename the file by its format",
        )
    if PYTHON.match(start):
        read = "fileinput.input(encoding='utf-8')"
        rows = f"ast.literal_eval(''.join({read}))" if start[0] == "[" else LITERALS.format(read)
        code = shlex.quote(f"import ast, fileinput, json, sys; json.dump({rows}, sys.stdout)")
        command = source.format_conversion(f"python -c {code}", "converted", ".json")
        raise UserError(
            ExitCode.DATA, Problem("rows are Python dicts, not JSON", where=f"{source.name}:1", text=start), fix=command
        )
    if source.plain.endswith(YAML_SUFFIXES):
        return parse_yaml_rows(window.read_all(), source, bad)
    if source.plain.endswith(JSON_SUFFIXES) or start[:1] in ("", "{", "[") or start.startswith('"{\\'):
        return parse_json_rows(window, source, bad)
    return parse_csv_rows(window, source, bad)


def _read_start(window: TextWindow) -> str:
    """The first `LONGEST_START` characters behind white space."""
    while len(start := window.text.lstrip()[:LONGEST_START]) < LONGEST_START and not window.ended:
        window.grow()
    return start
