"""Parquet files and sets of the Hugging Face hub into rows with the number of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt

HUB = "hf://"
HUB_ID = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^:/]+))?(?::(.+))?")
DEFAULT_SPLIT = "train"
ROWS_AT_ONCE = 1024


def parquet_rows(path: str, name: str) -> Iterator[tuple[int, Any]]:
    """Rows of a parquet file; a row's line is its number, from 1.

    Raises:
        UserError: 65 for a file that is cut off or damaged.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(values)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            ExitCode.DATA,
            Problem("the parquet file is cut off or damaged", where=f"{name}:{number + 1}", text=str(error)),
            fix="write, copy or download it again",
        ) from None


def check_hub_id(path: str) -> None:
    """Refuse a hub id of another form.

    Raises:
        UserError: 64.
    """
    if not HUB_ID.fullmatch(path):
        raise UserError(
            ExitCode.CONFIG,
            Problem("not the name of a hub set", text=path),
            fix="write hf://org/name, hf://org/name/config or hf://org/name/config:split",
        )


def hub_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Rows of `hf://org/name[/config][:split]` (split `train` where none is named), through `datasets`.

    Raises:
        UserError: 64 for another form, 66 when the hub or the set cannot be had.
    """
    check_hub_id(path)
    found = HUB_ID.fullmatch(path)
    name, config, split = found.groups() if found else ("", None, None)
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=split or DEFAULT_SPLIT)
        rows = iter(loaded)
    # Whatever datasets raises here (a dozen types of four packages) means that the set cannot be had.
    except Exception as error:
        raise UserError(
            ExitCode.INPUT_MISSING,
            Problem("the hub set cannot be had", where=path, text=f"{type(error).__name__}: {excerpt(error)}"),
            fix="check the name, the split and the network; or download its files and name those",
        ) from None
    for number, values in enumerate(rows, 1):
        yield number, _without_nulls(values)


def _without_nulls(values: Any) -> Any:
    """Drop the nulls inside of nested values: Arrow gives each struct the keys of all, null for absent."""
    if not isinstance(values, dict):
        return values
    return {name: _pruned(value) for name, value in values.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    return value
