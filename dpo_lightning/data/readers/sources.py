"""Rows of files and of data sets of the hub, each with its origin: the format is recognized by the content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.arrow_rows import HUB, check_hub_id, read_hub_rows, read_parquet_rows
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.csv_rows import parse_csv_rows
from dpo_lightning.data.readers.json_rows import parse_json_rows
from dpo_lightning.data.readers.paths import check_path, format_path, read_bytes
from dpo_lightning.data.readers.text_cleaning import clean
from dpo_lightning.data.readers.text_files import PARQUET, read_text
from dpo_lightning.errors import ExitCode, Problem, UserError

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


class Row(NamedTuple):
    """One row with the columns of its source.

    The reader sets `origin`, `values` and `recomposed`; the last two belong to `--data.columns`, the user's names for
    columns of a format.

    Attributes:
        origin: the file and the line where the row begins (the row's number in a table, which has no lines).
        values: text or other values by column; every string is in NFC and free of control characters.
        recomposed: columns whose text was not in NFC before.
        displaced: columns with a name of the format that are not used, because the user named others for them.
        kept: columns that the user named and the row lacks, each with the format's own name that is used instead.
    """

    origin: Origin
    values: dict[str, Any]
    recomposed: frozenset[str] = frozenset()
    displaced: frozenset[str] = frozenset()
    kept: frozenset[tuple[str, str]] = frozenset()


def read_files(paths: str | Sequence[str], bad: BadRows | None = None) -> Iterator[Row]:
    """Read one or several sources one after the other; all paths are checked before the first is read.

    Args:
        paths: files and hub ids.
        bad: receives the errors of rows; if None, they are raised together after the last row.

    Raises:
        UserError: as in `read_rows`; 64 if `paths` is empty.
    """
    sources = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not sources:
        raise UserError(ExitCode.CONFIG, "no data file is given", fix="name at least one file")
    for path in map(os.fspath, sources):
        if path.startswith(HUB):
            check_hub_id(path)
        else:
            check_path(path)
    collected = BadRows() if bad is None else bad
    for path in sources:
        yield from read_rows(path, collected)
    if bad is None:
        collected.raise_if_any()


def read_rows(path: str, bad: BadRows | None = None) -> Iterator[Row]:
    """Read the rows of a file or of a data set of the hub (`hf://org/name`).

    Files are JSON arrays, JSON lines or CSV, each also gzipped, or parquet. The format is recognized by the content;
    the suffix only decides whether text that does not begin like JSON is a damaged JSON file or CSV.

    Args:
        path: a file or hub id.
        bad: receives the errors of rows; if None, they are raised together after the last row.

    Raises:
        UserError: 64 for a URL, 65 for a file without rows or of another format, 66 if the source does not exist or
            cannot be opened, 74 if reading fails.
    """
    path = os.fspath(path)
    name = format_path(path)
    collected = BadRows() if bad is None else bad
    empty, before, nth = True, 0, 1
    for line, value in _read_values(path, name, collected):
        # An array may have several rows on one line: `nth` counts them.
        empty, nth, before = False, nth + 1 if line == before else 1, line
        origin = Origin(name, line, nth)
        try:
            row = _make_row(origin, value)
        except RowError as error:
            collected.add(origin, error)
        else:
            yield row
    if bad is None:
        collected.raise_if_any()
    if empty and not collected:
        raise UserError(
            ExitCode.DATA, Problem("the source has no rows", where=f"{name}:1"), fix="name a source with rows"
        )


def _make_row(origin: Origin, value: Any) -> Row:
    if not isinstance(value, dict):
        fix = 'write each row as an object, like {"prompt": ..., "chosen": ..., "rejected": ...}'
        shown = "" if isinstance(value, list) else value
        raise RowError(f"the row is {kind_of(value)}, not an object", shown, fix)
    values, recomposed = clean(value)
    return Row(origin, values, recomposed)


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


def _read_values(path: str, name: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Read the line and the value of each row with the reader for the source's first bytes."""
    if path.startswith(HUB):
        return read_hub_rows(path)
    if read_bytes(path, len(PARQUET)) == PARQUET:
        return read_parquet_rows(path, name)
    text = read_text(path)
    if path.endswith(".parquet") and text.strip():
        raise UserError(
            ExitCode.DATA, Problem("not a parquet file", where=f"{name}:1"), fix="rename the file by its format"
        )
    if path.removesuffix(".gz").endswith(JSON_SUFFIXES) or text.lstrip()[:1] in ("", "{", "["):
        return parse_json_rows(text, name, bad)
    return parse_csv_rows(text, name, bad)
