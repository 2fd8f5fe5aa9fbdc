"""Columns of a terminal that a text takes: Hangul, Han and emoji take two each, combining marks none."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from dpo_lightning.terminal import JOINERS, quote


def measure_width(text: str) -> int:
    """Return the columns that a text of printable characters takes."""
    return len(text) if text.isascii() else sum(map(measure_character, text))


def measure_character(character: str) -> int:
    """Return the columns of one character."""
    if character in JOINERS or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    if "\u1160" <= character <= "\u11ff":  # vowels and finals of old Hangul join the syllable before them
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def pad(text: str, width: int) -> str:
    """Append spaces to a text up to a width."""
    return text + " " * (width - measure_width(text))


def fold(text: str, width: int) -> Iterator[str]:
    """Split a text of printable characters into lines of at most `width` columns, wherever that is."""
    line, used = "", 0
    for character in text:
        columns = measure_character(character)
        if used + columns > width:
            yield line
            line, used = "", 0
        line, used = line + character, used + columns
    yield line


def quote_ends(text: str, limit: int) -> tuple[str, str]:
    """Escape the beginning and the end of a text so that both together take at most about `limit` columns.

    Returns:
        The whole text and "", or the beginning and the end of a longer one.
    """
    if len(text) <= limit:  # a character takes no column or more, so a longer text may fit; it is cut nevertheless
        whole = quote(text)
        if measure_width(whole) <= limit:
            return whole, ""
    half = max(1, limit // 2)
    head = next(fold(quote(text[:half]), half))
    tail = quote(text[-half:])
    reversed_tail = next(fold(tail[::-1], half))
    return head, reversed_tail[::-1]
