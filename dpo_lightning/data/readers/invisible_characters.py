"""Invisible characters: bidirectional controls, and zero-width ones that no script or emoji needs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
SPACES, JOINERS = "\u200b", "\u200c\u200d"
WIDTHLESS = "\u180e\u2060-\u2064\ufeff"
FILLERS = "\u3164\uffa0"
"""Hangul letters that show nothing; old Hangul has fillers of its own."""

TAGS = "\U000e0000-\U000e007f"

INVISIBLE = re.compile(f"[{DIRECTION}{SPACES}{JOINERS}{WIDTHLESS}{FILLERS}{TAGS}]")
DIRECTIONS = re.compile(f"[{DIRECTION}]")
SIDES = "\u061c\u200e\u200f"
RIGHT_TO_LEFT = re.compile("[\u0590-\u061b\u061d-\u08ff\ufb1d-\ufdff\ufe70-\ufefe]")
"""Scripts beside which a mark of direction says to which side a digit or a bracket belongs."""

JOINING = re.compile(
    "[\u0600-\u08ff\ufb50-\ufdff\ufe70-\ufefe"  # Arabic, Persian, Syriac, N'Ko
    "\u0900-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1800-\u18af\U00011000-\U00011fff]"  # Indic and its kin
)
SPACELESS = re.compile("[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u1950-\u1aff\u3040-\u30ff\u3400-\u9fff]")
"""Scripts that write no spaces, in which a space without width says where a line may break."""

FLAG = "\U0001f3f4"
"""A flag that tags of a region follow."""

MARKED, HIDDEN = "bidirectional control characters (such as U+202E)", "zero-width characters (such as U+200B)"


def visible(text: str) -> str:
    """The text without the invisible characters."""
    if text.isascii() or not INVISIBLE.search(text):
        return text
    hidden = set(_places(text))
    return "".join(character for place, character in enumerate(text) if place not in hidden)


def kinds_in(value: Any) -> set[str]:
    """The kinds of such characters in a value of a row, in words."""
    kinds: set[str] = set()
    for text in texts_in(value):
        if not text.isascii() and INVISIBLE.search(text):
            kinds |= {MARKED if DIRECTIONS.match(text[place]) else HIDDEN for place in _places(text)}
    return kinds


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)


def _places(text: str) -> Iterator[int]:
    """Where such characters stand."""
    flag = False
    for found in INVISIBLE.finditer(text):
        place, character = found.start(), found[0]
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        if character >= "\U000e0000":
            flag = before == FLAG or (flag and before >= "\U000e0000")
            if flag:
                continue
        if character in JOINERS and (JOINING.match(before) or (_is_emoji(before) and _is_emoji(after))):
            continue
        if character in SPACES and (SPACELESS.match(before) or SPACELESS.match(after)):
            continue
        if character in SIDES and RIGHT_TO_LEFT.search(text):
            continue
        yield place


def _is_emoji(character: str) -> bool:
    """Whether a character may be part of an emoji that is put together of several."""
    return bool(character) and (character == "\ufe0f" or unicodedata.category(character) in ("So", "Sm", "Sk"))
