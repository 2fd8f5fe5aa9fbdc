"""Finds invisible characters in texts: bidirectional controls, and zero-width ones that no script or emoji needs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

# Parts of a character class of a regular expression: single characters and ranges.
DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Marks, embeddings, overrides and isolates of the bidirectional algorithm."""

SPACES, JOINERS = "\u200b", "\u200c\u200d"
"""The zero-width space, and the zero-width non-joiner and joiner."""

WIDTHLESS = "\u180e\u2060-\u2064\ufeff"
"""The Mongolian vowel separator, the word joiner, invisible operators of mathematics, the byte order mark."""

FILLERS = "\u3164\uffa0"
"""Blank letters of modern Hangul; those of old Hangul, which its syllables need, are other characters."""

TAGS = "\U000e0000-\U000e007f"
"""Copies of ASCII that are never displayed; they name the region of a flag, or hide a text."""

INVISIBLE = re.compile(f"[{DIRECTION}{SPACES}{JOINERS}{WIDTHLESS}{FILLERS}{TAGS}]")
DIRECTIONS = re.compile(f"[{DIRECTION}]")
SIDES = "\u061c\u200e\u200f"
"""The marks of direction."""

RIGHT_TO_LEFT = re.compile("[\u0590-\u061b\u061d-\u08ff\ufb1d-\ufdff\ufe70-\ufefe]")
"""Scripts written from right to left: beside them, a mark of direction places a digit or a bracket."""

JOINING = re.compile(
    "[\u0600-\u08ff\ufb50-\ufdff\ufe70-\ufefe"  # Arabic, Persian, Syriac, N'Ko
    "\u0900-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1800-\u18af\U00011000-\U00011fff]"  # Indic scripts
)
"""Scripts in which a joiner changes the shape of the letters beside it."""

SPACELESS = re.compile("[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u1950-\u1aff\u3040-\u30ff\u3400-\u9fff]")
"""Scripts without spaces between words: a zero-width space marks where a line may break."""

FLAG = "\U0001f3f4"
"""The black flag: with tags after it, it is the flag of a region such as Scotland."""

MARKED, HIDDEN = "bidirectional control characters (such as U+202E)", "zero-width characters (such as U+200B)"
"""The two kinds of invisible characters, as warnings name them."""


def remove_invisible(text: str) -> str:
    """Remove the invisible characters that the text does not need."""
    if text.isascii() or not INVISIBLE.search(text):
        return text
    hidden = set(_find_places(text))
    return "".join(character for place, character in enumerate(text) if place not in hidden)


def find_invisible_kinds(value: Any) -> set[str]:
    """Return which of `MARKED` and `HIDDEN` occur in the texts of a JSON value."""
    kinds: set[str] = set()
    for text in iterate_texts(value):
        if not text.isascii() and INVISIBLE.search(text):
            kinds |= {MARKED if DIRECTIONS.match(text[place]) else HIDDEN for place in _find_places(text)}
    return kinds


def iterate_texts(value: Any) -> Iterator[str]:
    """Iterate over the texts in a JSON value, in order; keys of objects are not among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from iterate_texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from iterate_texts(item)


def _find_places(text: str) -> Iterator[int]:
    """Find the indices of invisible characters that the script or the emoji around them does not need."""
    flag = False  # whether the tags so far follow a flag
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
    """Whether a character may be part of an emoji of several code points: a symbol, or the variation selector 16."""
    return bool(character) and (character == "\ufe0f" or unicodedata.category(character) in ("So", "Sm", "Sk"))
