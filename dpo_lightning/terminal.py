"""Text from elsewhere on a terminal: what would move the cursor, set a title or turn the text is written as escapes."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but newline and tab, line separators, what turns the direction of text, and halves of a pair."""

JOINERS = "\u200c\u200d"
"""What joins letters and emoji; they are kept, as flags and families fall apart without them."""


def harmless(text: str) -> str:
    """A text of several lines: an answer of a model. Newlines and tabs stay."""
    return CONTROL.sub(lambda found: escaped(found.group()), text)


def one_line(text: str) -> str:
    """A text on one line: a name, a message."""
    return harmless(text).replace("\n", r"\n").replace("\t", r"\t")


def quoted(text: str) -> str:
    """A text on one line in which one sees what is invisible as well: an offending value."""
    return "".join(c if c.isprintable() or c in JOINERS else escaped(c) for c in text)


def escaped(text: str) -> str:
    """Every character as Python writes it in ASCII."""
    return text.encode("unicode_escape").decode()


class HarmlessRecord(logging.LogRecord):
    """A log message of a library, which may quote a file."""

    def getMessage(self) -> str:  # noqa: N802 - a method of logging
        """The message, harmless."""
        return harmless(super().getMessage())


def clean_libraries() -> None:
    """Let log messages and warnings of libraries be written harmlessly from now on."""
    logging.setLogRecordFactory(HarmlessRecord)
    written = warnings.formatwarning
    if not isinstance(written, HarmlessFormat):
        warnings.formatwarning = HarmlessFormat(written)


class HarmlessFormat:
    """The text of a warning, harmless."""

    def __init__(self, written: Any) -> None:
        """Keep what writes the text."""
        self.written = written

    def __call__(self, *args: Any, **options: Any) -> str:
        """The text of a warning."""
        return harmless(self.written(*args, **options))
