"""Files and hub sets into rows, each with its origin."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.arrow_rows import HUB, check_hub_id, read_hub_rows, read_parquet_rows
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.csv_rows import parse_csv_rows
from dpo_lightning.data.readers.json_rows import parse_json_rows
from dpo_lightning.data.readers.paths import check_path, display_name, read_bytes
from dpo_lightning.data.readers.text_cleaning import clean
from dpo_lightning.data.readers.text_files import PARQUET, read_text
from dpo_lightning.errors import ExitCode, Problem, UserError

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


class Row(NamedTuple):
    """One row as it stands in its source.

    Attributes:
        origin: the file and the line where the row begins (its number, in a table without lines).
        values: its columns; every string is in NFC and free of control characters.
        recomposed: the columns whose text was not in NFC.
        displaced: columns of our names that are left out, as others are named for them.
        kept: columns that are named but not there, each with the one of our name that is read instead.
    """

    origin: Origin
    values: dict[str, Any]
    recomposed: frozenset[str] = frozenset()
    displaced: frozenset[str] = frozenset()
    kept: frozenset[tuple[str, str]] = frozenset()


def read_files(paths: str | Sequence[str], bad: BadRows | None = None) -> Iterator[Row]:
    """Rows of one or several sources, one after the other; all paths are checked before the first is read.

    Raises:
        UserError: see `read_rows`; 64 where no path is given.
    """
    sources = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not sources:
        raise UserError(ExitCode.CONFIG, "no data file is named", fix="name at least one file")
    for path in map(os.fspath, sources):
        if path.startswith(HUB):
            check_hub_id(path)
        else:
            check_path(path)
    gathered = BadRows() if bad is None else bad
    for path in sources:
        yield from read_rows(path, gathered)
    if bad is None:
        gathered.raise_if_any()


def read_rows(path: str, bad: BadRows | None = None) -> Iterator[Row]:
    """Rows of a file (JSON array, JSON lines, CSV, each also gzipped; parquet) or of a hub set (`hf://org/name`).

    The format is told by the content; a suffix only decides between broken JSON and CSV.

    Args:
        path: the file or hub id.
        bad: where bad rows are gathered. Without it they are raised once the file is read to its end.

    Raises:
        UserError: 64 for a URL, 65 for content that is no rows, 66 for a source that is not there, 74 for a
            disk error.
    """
    path = os.fspath(path)
    name = display_name(path)
    gathered = BadRows() if bad is None else bad
    empty, before, nth = True, 0, 1
    for line, value in _values(path, name, gathered):
        empty, nth, before = False, nth + 1 if line == before else 1, line
        origin = Origin(name, line, nth)
        try:
            row = _row(origin, value)
        except RowError as error:
            gathered.add(origin, error)
        else:
            yield row
    if bad is None:
        gathered.raise_if_any()
    if empty and not gathered:
        raise UserError(ExitCode.DATA, Problem("no rows", where=f"{name}:1"), fix="name a file that has rows")


def _row(origin: Origin, value: Any) -> Row:
    if not isinstance(value, dict):
        fix = 'write each row as an object, like {"prompt": ..., "chosen": ..., "rejected": ...}'
        shown = "" if isinstance(value, list) else value
        raise RowError(f"a row is {kind_of(value)} where an object is due", shown, fix)
    values, recomposed = clean(value)
    return Row(origin, values, recomposed)


def kind_of(value: object) -> str:
    """The kind of a value in JSON's words, with its article."""
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


def _values(path: str, name: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Values of the source with their lines, by what its first bytes are."""
    if path.startswith(HUB):
        return read_hub_rows(path)
    if read_bytes(path, len(PARQUET)) == PARQUET:
        return read_parquet_rows(path, name)
    text = read_text(path)
    if path.endswith(".parquet") and text.strip():
        raise UserError(ExitCode.DATA, Problem("not a parquet file", where=f"{name}:1"), fix="name it for what it is")
    if path.removesuffix(".gz").endswith(JSON_SUFFIXES) or text.lstrip()[:1] in ("", "{", "["):
        return parse_json_rows(text, name, bad)
    return parse_csv_rows(text, name, bad)
