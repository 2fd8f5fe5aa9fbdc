"""Checks and normalizes the values of rows: valid Unicode in NFC, limited in size and depth, no control characters."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.terminal import quote

MAX_FIELD_BYTES = 1_000_000
"""Bytes of UTF-8 in all texts of one column of a row together."""

MAX_DEPTH = 64
"""Nested lists and objects of one column; a recursive function reaches Python's limit at about 1000."""

REFUSED = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
"""Control characters other than tab, line feed and carriage return, and surrogates."""

ALLOWED_BYTES = bytes({*range(256)} - {*range(0x20), 0x7F} | {*b"\t\n\r"})
"""Bytes of UTF-8 other than refused characters of ASCII."""

C1_BYTE = b"\xc2"
"""The first byte of each control character beyond ASCII, and of half of Latin-1."""

SURROGATES = ("\ud800", "\udfff")
CONTEXT = 20
"""Characters before a refused one that an error quotes."""

MAX_NAME = 40
"""Characters of a column's name that messages quote."""

USUAL_KEYS = frozenset(("prompt", "chosen", "rejected", "completion", "messages", "role", "content"))
"""Keys that are not checked, as they are plain ASCII: most keys of a file are these, and checking takes time."""


def clean(values: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str], dict[str, RowError]]:
    """Return a row with all its strings in NFC, the names of the columns that were not in it, and faults by column.

    The same word may be written by different code points: NFC makes duplicates equal, and gives the model one form.

    A fault is a control character other than tab and line ends, a lone surrogate, more than `MAX_FIELD_BYTES`, nesting
    deeper than `MAX_DEPTH`, or keys that are equal once they are in NFC. The value of a column with a fault is None.

    Args:
        values: the row by column.

    Raises:
        RowError: a column's name has such a character, or equals another one in NFC.
    """
    cleaned: dict[str, Any] = {}
    recomposed: list[str] = []
    faults: dict[str, RowError] = {}
    for name, value in values.items():
        column = _clean_key(name, name)
        # Most values: nothing in them is refused, composed or too long.
        if value.__class__ is str and len(value) <= MAX_FIELD_BYTES and 0 <= _measure(value) <= MAX_FIELD_BYTES:
            cleaned[column] = value
            continue
        field = _Field(column)
        try:
            cleaned[column] = field.clean_value(value, 0)
        except RowError as error:
            cleaned[column], faults[column] = None, error
            continue
        if field.changed:
            recomposed.append(column)
    if len(cleaned) < len(values):
        raise RowError("names of two columns differ only in Unicode form", fix="write each column once")
    return cleaned, frozenset(recomposed), faults


def excerpt_name(name: str) -> str:
    """Shorten and escape a column's name for a message."""
    shown = name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
    return quote(shown)


def excerpt_value(value: Any) -> str:
    """Convert a value for a message: text is returned as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def decode_json(value: Any, name: str, fix: str) -> Any:
    """Decode a text that contains JSON; any other value is returned as it is.

    Tables of CSV and parquet store lists and objects as JSON text.

    Args:
        value: a value of a row.
        name: its column, for the error.
        fix: the remedy for a text that is not JSON.

    Raises:
        RowError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(f"{name} is text that is not JSON", value, fix) from None


class _Field:
    """Cleans one column of a row; limits the sum of its texts.

    Attributes:
        changed: whether a text was not in NFC.
        size: bytes of UTF-8 so far.
    """

    __slots__ = ("changed", "name", "size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self.changed = False

    def clean_value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.clean_text(value)
        if depth == MAX_DEPTH and isinstance(value, (list, tuple, dict)):
            raise RowError(
                f"'{excerpt_name(self.name)}' is nested more than {MAX_DEPTH} levels deep", fix="flatten the value"
            )
        if isinstance(value, (list, tuple)):
            return [self.clean_value(item, depth + 1) for item in value]
        if isinstance(value, dict):
            cleaned = {_clean_key(key, self.name): self.clean_value(item, depth + 1) for key, item in value.items()}
            if len(cleaned) < len(value):
                name = excerpt_name(self.name)
                raise RowError(f"keys in '{name}' differ only in Unicode form", fix="write each key once")
            return cleaned
        return value

    def clean_text(self, text: str) -> str:
        size = _measure(text) if len(text) <= MAX_FIELD_BYTES else -1
        checked = text
        if size < 0:
            checked = _normalize(text, self.name)
            self.changed |= checked is not text  # `_normalize` returns the same object for a text that is in NFC
            size = len(checked.encode())
        self.size += size
        if self.size > MAX_FIELD_BYTES:
            raise _size_error(text, self.name)
        return checked


def _clean_key(key: str, name: str) -> str:
    return key if key in USUAL_KEYS else _normalize(key, name)


def _measure(text: str) -> int:
    """Count the bytes of a text in UTF-8; -1 for one that may have a refused character, or is not in NFC.

    Deleting the allowed bytes takes a tenth of the time of searching by `REFUSED`.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a surrogate
        return -1
    if data.translate(None, ALLOWED_BYTES):
        return -1
    if len(data) > len(text) and (C1_BYTE in data or not unicodedata.is_normalized("NFC", text)):
        return -1
    return len(data)


def _size_error(text: str, name: str) -> RowError:
    what = f"'{excerpt_name(name)}' is longer than {MAX_FIELD_BYTES:,} bytes"
    return RowError(what, text, "shorten the text, or remove the row")


def _normalize(text: str, name: str) -> str:
    """Check the characters of a text and return it in NFC; `name` is its column, for the error."""
    # Each character has a byte at least: texts of many megabytes are refused before they are searched.
    if len(text) > MAX_FIELD_BYTES:
        raise _size_error(text, name)
    found = REFUSED.search(text)
    if found:
        kind = "lone surrogate" if SURROGATES[0] <= found[0] <= SURROGATES[1] else "control character"
        what = f"{kind} U+{ord(found[0]):04X} in '{excerpt_name(name)}'"
        raise RowError(what, text[max(0, found.start() - CONTEXT) :], "remove the character from the text")
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)
