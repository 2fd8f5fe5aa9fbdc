"""What a value of a row may hold: clean Unicode of a sane size, in its composed form."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.terminal import quote

MAX_FIELD_BYTES = 1_000_000
MAX_DEPTH = 64

REFUSED = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
SURROGATES = ("\ud800", "\udfff")
CONTEXT = 20
MAX_NAME = 40

USUAL_KEYS = frozenset(("prompt", "chosen", "rejected", "completion", "messages", "role", "content"))
"""Names that need no look: most of the strings of a file are these."""


def clean(values: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The row with its strings in NFC, and the columns that this changed.

    Raises:
        RowError: for a control character (but tab and line ends), a lone surrogate, more than 1 MB in a
            field, or deep nesting.
    """
    cleaned: dict[str, Any] = {}
    recomposed: list[str] = []
    for name, value in values.items():
        column = _key(name, name)
        field = _Field(column)
        cleaned[column] = field.value(value, 0)
        if field.changed:
            recomposed.append(column)
    if len(cleaned) < len(values):
        raise RowError("two columns whose names differ only in Unicode form", fix="give each column once")
    return cleaned, frozenset(recomposed)


def excerpt_name(name: str) -> str:
    """A column's name as it may stand in a message."""
    shown = name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
    return quote(shown)


def excerpt_value(value: Any) -> str:
    """A value as it may stand in a message: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def decode_json(value: Any, name: str, fix: str) -> Any:
    """What a text that is JSON stands for; any other value as it is.

    Args:
        value: of a row.
        name: of its column, for the message.
        fix: the remedy where the text is not JSON.

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
    """Cleans one field, adding up its size."""

    __slots__ = ("changed", "name", "size")

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self.changed = False

    def value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if depth == MAX_DEPTH and isinstance(value, (list, tuple, dict)):
            raise RowError(f"'{excerpt_name(self.name)}' is nested more than {MAX_DEPTH} deep", fix="flatten it")
        if isinstance(value, (list, tuple)):
            return [self.value(item, depth + 1) for item in value]
        if isinstance(value, dict):
            cleaned = {_key(key, self.name): self.value(item, depth + 1) for key, item in value.items()}
            if len(cleaned) < len(value):
                name = excerpt_name(self.name)
                raise RowError(f"keys in '{name}' differ only in Unicode form", fix="give each key once")
            return cleaned
        return value

    def text(self, text: str) -> str:
        checked = _checked(text, self.name)
        self.changed |= checked is not text
        self.size += len(checked) if checked.isascii() else len(checked.encode())
        if self.size > MAX_FIELD_BYTES:
            raise _too_long(text, self.name)
        return checked


def _key(key: str, name: str) -> str:
    return key if key in USUAL_KEYS else _checked(key, name)


def _too_long(text: str, name: str) -> RowError:
    what = f"'{excerpt_name(name)}' is longer than {MAX_FIELD_BYTES:,} bytes"
    return RowError(what, text, "cut the text, or remove the row")


def _checked(text: str, name: str) -> str:
    if len(text) > MAX_FIELD_BYTES:
        raise _too_long(text, name)
    found = REFUSED.search(text)
    if found:
        kind = "lone surrogate" if SURROGATES[0] <= found[0] <= SURROGATES[1] else "control character"
        what = f"{kind} U+{ord(found[0]):04X} in '{excerpt_name(name)}'"
        raise RowError(what, text[max(0, found.start() - CONTEXT) :], "remove the character from the text")
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", text)
