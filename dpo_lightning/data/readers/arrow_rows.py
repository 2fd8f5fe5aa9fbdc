"""Rows of parquet files and of data sets of the Hugging Face hub, each with its number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt

HUB = "hf://"
"""The prefix of a path that names a data set of the hub."""

HUB_ID = re.compile(r"hf://([A-Za-z0-9][\w.-]*/\w[\w.-]*)(?:/(\w[^:/]*))?(?::(.+))?")
"""`hf://org/name[/config][:split]`; the groups are `org/name`, the config and the split."""

DEFAULT_SPLIT = "train"
ROWS_AT_ONCE = 1024
"""Rows of a parquet file that are decoded together: more are faster, but need memory for all of them."""

PAGE_BUFFER = 1 << 16
"""Bytes of each column of a parquet file that are read from the disk at once."""


def read_parquet_rows(file: IO[bytes], name: str) -> Iterator[tuple[int, Any]]:
    """Read the rows of a parquet file, with their numbers from 1 in place of lines.

    Args:
        file: the file.
        name: the file as messages print it.

    Raises:
        UserError: 65 if the file is truncated or damaged.
    """
    return number_rows(_read_parquet_batches(file), name, "parquet")


def _read_parquet_batches(file: IO[bytes]) -> Iterator[Any]:
    from pyarrow import parquet

    # Without a buffer, pyarrow would read all pages of a row group at once, which may be the whole file.
    with parquet.ParquetFile(file, buffer_size=PAGE_BUFFER, pre_buffer=False) as table:
        yield from table.iter_batches(ROWS_AT_ONCE)


def number_rows(batches: Iterable[Any], name: str, kind: str) -> Iterator[tuple[int, Any]]:
    """The rows of record batches, with their numbers from 1 in place of lines.

    Args:
        batches: the record batches, read one by one.
        name: the file as messages print it.
        kind: its format, for the error.

    Raises:
        UserError: 65 if the file is truncated or damaged.
    """
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                yield number, drop_nulls(values)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            ExitCode.DATA,
            Problem(f"the {kind} file is truncated or damaged", where=f"{name}:{number + 1}", text=str(error)),
            fix="write, copy or download the file again",
        ) from None


def check_hub_id(path: str) -> None:
    """Check the form of a hub id; whether the data set exists is not checked.

    Raises:
        UserError: 64 if it is not `hf://org/name[/config][:split]`, or a local path has the name: `datasets` would read
            that one instead.
    """
    found = HUB_ID.fullmatch(path)
    if not found:
        raise UserError(
            ExitCode.CONFIG,
            Problem("not a valid name of a data set of the hub", text=path),
            fix="write hf://org/name, hf://org/name/config or hf://org/name/config:split",
        )
    if Path(found[1]).exists():
        raise UserError(
            ExitCode.CONFIG,
            Problem("a file or folder here has the name of this data set of the hub", text=path),
            fix=f"name its files without {HUB} if it is meant, or run the command in another folder",
        )


def read_hub_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Read the rows of a data set of the hub, with their numbers from 1; see `load_hub_set`."""
    for number, values in enumerate(load_hub_set(path), 1):
        yield number, drop_nulls(values)


def load_hub_set(path: str) -> Any:
    """Load a data set of the hub with the `datasets` library, which keeps it on the disk.

    Args:
        path: `hf://org/name[/config][:split]`; the split is `train` by default.

    Raises:
        UserError: 64 for another form, 66 if the data set cannot be loaded.
    """
    check_hub_id(path)
    found = HUB_ID.fullmatch(path)
    name, config, split = found.groups() if found else ("", None, None)
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split or DEFAULT_SPLIT)
    # `datasets` raises a dozen types of four packages here; each of them means that the data set cannot be loaded.
    except Exception as error:
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem(
                "the data set of the hub cannot be loaded", where=path, text=f"{type(error).__name__}: {excerpt(error)}"
            ),
            fix="check the name, the split and the network; or download its files and name them",
        ) from None


def drop_nulls(values: Any) -> Any:
    """Drop keys with null inside the columns of a row; a column that is null itself is kept.

    An Arrow struct has the same keys in every row: a message without `tool_calls` has `tool_calls: null` in a table
    in which another message has some.
    """
    if not isinstance(values, dict):
        return values
    return {name: _drop_nested_nulls(value) for name, value in values.items()}


def _drop_nested_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nested_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        # A null element of a list was written as one: only keys of structs are filled in by Arrow.
        return [_drop_nested_nulls(item) for item in value]
    return value
