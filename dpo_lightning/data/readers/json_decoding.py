"""Decodes JSON, stricter than Python's own decoder, and describes its errors."""

from __future__ import annotations

import json
import math
import re
from json import JSONDecodeError
from typing import Any

from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_name

SPACE = re.compile(r"[ \t\r\n]*")
COMMENT = re.compile(r"//|/\*|#")
CLOSING = re.compile(r",\s*([}\]])")
CONTEXT = 30
"""Characters before a syntax error that are quoted."""

MAX_SHOWN = 200
"""Characters of a text that are passed to an error, which shortens them once more when it is printed."""

KEPT = 80
"""Characters before and after an element that an error may quote."""

ONE_PER_LINE = "write one whole JSON object on each line, or one array of objects"


def _refuse_constant(name: str) -> Any:
    raise RowError(f"{name} is not JSON", text=name, fix="write a number or null, or remove the field")


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RowError("a number is too large", text=digits, fix="write a number in the range of a 64-bit float")
    return number


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from the keys and values of an object; a key that occurs twice is refused.

    Python's decoder would keep the last value only.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"duplicate key '{excerpt_name(twice)}'", fix="write each key once")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_build_object, parse_constant=_refuse_constant, parse_float=_parse_finite)
"""Decodes values; unlike Python's own, it refuses NaN, infinities, floats out of range, and duplicate keys."""

LENIENT = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
"""Finds the end of an element that `DECODER` refuses, so that the elements after it are checked as well."""

UNCHECKED = json.JSONDecoder(strict=False)
"""Decodes an object that contains all rows, whose elements `DECODER` checks one by one afterwards."""


def find_element_end(text: str, place: int) -> int:
    """Find where the element at `place` ends; -1 if its syntax is wrong, so that no end can be found."""
    try:
        return LENIENT.raw_decode(text, place)[1]
    except (ValueError, RecursionError):
        return -1


def describe_error(error: Exception, text: str, whole: str, *, cut: bool) -> RowError:
    """Convert an error of the decoder into one with a remedy; a `RowError` is returned as it is.

    Args:
        error: what the decoder raised.
        text: the text that it decoded.
        whole: what the text is, for the message: `line 3` or `the array`.
        cut: whether nothing follows the text: if it ends early, the file was probably cut off.
    """
    if isinstance(error, RowError):
        return error
    if isinstance(error, RecursionError):
        return RowError("JSON is nested too deep", fix="flatten the value")
    if not isinstance(error, JSONDecodeError):
        # Python converts no more than 4300 digits to an integer.
        return RowError("a number has too many digits", fix="write a smaller number, or a string")
    at_end = not text[error.pos :].strip() or error.msg.startswith("Unterminated string")
    shown = text[max(0, error.pos - CONTEXT) : error.pos + KEPT]
    if comment := find_comment(text, error.pos):
        return comment
    if trailing := CLOSING.match(text, len(text[: error.pos].rstrip()) - (text[error.pos : error.pos + 1] != ",")):
        return RowError(f"not JSON (a comma before {trailing[1]})", shown, "remove the comma")
    if at_end:
        remedy = "the file is cut off: write or copy it again" if cut else ONE_PER_LINE
        return RowError(f"{whole} ends early", text[-KEPT:] if cut else shown, remedy)
    what = error.msg[0].lower() + error.msg[1:].removesuffix(" at")
    return RowError(f"not JSON ({what})", shown, ONE_PER_LINE)


def find_comment(text: str, place: int) -> RowError | None:
    """The error for a comment at `place`; None if there is none."""
    if not COMMENT.match(text, place):
        return None
    return RowError("a comment, which JSON does not have", text[place:].partition("\n")[0], "remove all comments")


def skip_space(text: str, place: int) -> int:
    """Find the first character from `place` on that is no white space of JSON; the end of the text without one."""
    found = SPACE.match(text, place)
    return found.end() if found else place
