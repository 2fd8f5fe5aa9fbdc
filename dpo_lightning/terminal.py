"""Escapes for untrusted text on a terminal: control characters could move the cursor, set a title or reorder text."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except newline and tab, line separators, text direction marks, and unpaired surrogates."""

JOINERS = "\u200c\u200d"
"""Zero-width joiners, which are kept as they hold letters and emoji together."""


def escape_controls(text: str) -> str:
    """Escape control characters in a text of several lines; newlines and tabs stay."""
    return CONTROL.sub(lambda found: escape(found.group()), text)


def one_line(text: str) -> str:
    """Escape control characters, newlines and tabs in a text that is printed on one line."""
    return escape_controls(text).replace("\n", r"\n").replace("\t", r"\t")


def quote(text: str) -> str:
    """Escape every unprintable character, invisible ones included, in a text that is printed on one line."""
    return "".join(c if c.isprintable() or c in JOINERS else escape(c) for c in text)


def escape(text: str) -> str:
    """Write every character as a Python escape sequence."""
    return text.encode("unicode_escape").decode()


class EscapedRecord(logging.LogRecord):
    """A log record whose message is escaped, as libraries may quote a file in it."""

    def getMessage(self) -> str:  # noqa: N802 - a method of logging
        """Return the message with control characters escaped."""
        return escape_controls(super().getMessage())


def clean_libraries() -> None:
    """Escape control characters in log messages and warnings of libraries from now on."""
    logging.setLogRecordFactory(EscapedRecord)
    written = warnings.formatwarning
    # A second call does not wrap the wrapper.
    if not isinstance(written, EscapedFormat):
        warnings.formatwarning = EscapedFormat(written)


class EscapedFormat:
    """A replacement of `warnings.formatwarning` that escapes control characters."""

    def __init__(self, written: Any) -> None:
        self.written = written

    def __call__(self, *args: Any, **options: Any) -> str:
        """Format a warning as the replaced function does, and escape its control characters."""
        return escape_controls(self.written(*args, **options))
