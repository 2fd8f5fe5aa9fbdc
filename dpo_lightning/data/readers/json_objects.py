"""One JSON object for a whole file: a list of rows beside other values, or rows by column, as pandas writes them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_cleaning import excerpt_name

TURN_KEYS = ("role", "from")
"""Keys of a message: a list of messages is a conversation and contains no rows."""

ROW_KEYS = ("prompt", "question", "instruction", "chosen", "rejected", "completion")
"""Columns of rows: an object that has one of them with a text is a row itself, and so is one with a conversation."""

SPLIT = frozenset(("columns", "data"))
"""Keys of an object that pandas writes with `orient="split"`, beside `index`."""

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_NAMED = 5


def find_rows(value: Mapping[str, Any], source: Source, jq: str = "jq") -> str | list[Any]:
    """Find the rows in the only object of a file, and add a note about where they are to `source`.

    Returns:
        The key of the list of rows, or the rows themselves: those that the columns make, or the object as the only row.

    Raises:
        RowError: several lists could be the rows, or columns differ in length.
    """
    if any(isinstance(value.get(name), str) for name in ROW_KEYS) or any(map(_is_conversation, value.values())):
        return [value]
    rows = _read_split(value, source) if value.keys() >= SPLIT else None
    if rows is None:
        lists = [name for name, item in value.items() if _is_list_of_objects(item)]
        if len(lists) == 1:
            source.notes.append(f"rows are in '{excerpt_name(lists[0])}'")
            return lists[0]
        if lists:
            raise _several_lists_error(lists, source, jq)
        rows = _read_columns(value, source)
    return [value] if rows is None else rows


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and any(key in value[0] for key in TURN_KEYS)
    )


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and not _is_conversation(value)


def _several_lists_error(lists: list[str], source: Source, jq: str) -> RowError:
    """The error for an object with several lists of rows, with the command that writes the first of them."""
    named = ", ".join(f"'{excerpt_name(name)}'" for name in lists[:MAX_NAMED])
    named += f", and {len(lists) - MAX_NAMED} more" if len(lists) > MAX_NAMED else ""
    first = lists[0]
    if not jq or not first.isprintable():
        return RowError(f"rows are in {named}", fix="write each list to a file of its own")
    word = bool(WORD.fullmatch(first))
    path = f".{first}" if word else shlex.quote(f".[{json.dumps(first, ensure_ascii=False)}]")
    command = source.format_conversion(f"jq {path}", first if word else "rows", ".json")
    return RowError(f"rows are in {named}", fix=f"write each list to a file of its own: {command}")


def _read_columns(value: Mapping[str, Any], source: Source) -> list[Any] | None:
    """Read rows that are stored by column (`{"prompt": [...], ...}`), or by their numbers; None for another object."""
    items = list(value.values())
    if not items:
        return None
    if all(isinstance(item, list) and item and not _is_conversation(item) for item in items):
        lengths = {name: len(item) for name, item in value.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(
                f"'{excerpt_name(name)}' {length:,}" for name, length in list(lengths.items())[:MAX_NAMED]
            )
            raise RowError(f"columns of different lengths: {shown}", fix="write one object for each row")
        source.notes.append("one object with the rows by column")
        return [dict(zip(value, row, strict=True)) for row in zip(*items, strict=True)]
    if not all(isinstance(item, dict) and item for item in items):
        return None
    if all(name.isdecimal() for name in value):
        source.notes.append("one object with the rows by number")
        return items
    numbers = list(items[0])
    if all(name.isdecimal() for name in numbers) and all(list(item) == numbers for item in items):
        source.notes.append("one object with the rows by column")
        return [{name: item[number] for name, item in value.items()} for number in numbers]
    return None


def _read_split(value: Mapping[str, Any], source: Source) -> list[Any] | None:
    """Read rows that pandas wrote with `orient="split"`; None for another object."""
    columns, rows = value["columns"], value["data"]
    if (
        not isinstance(columns, list)
        or not isinstance(rows, list)
        or not all(isinstance(name, str) for name in columns)
    ):
        return None
    if len(set(columns)) < len(columns) or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        return None
    source.notes.append("one object with the rows in 'data' and their names in 'columns'")
    return [dict(zip(columns, row, strict=True)) for row in rows]
