"""JSON text into values with the line of each: an array, or one object per line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_name

SPACE = re.compile(r"[ \t\r\n]*")
BLANK = " \t\r"
CONTEXT = 30
SHOWN = 200
ONE_PER_LINE = "write one whole JSON object on each line, or one array of objects"


def _refuse_constant(name: str) -> Any:
    raise RowError(f"{name} is not JSON", text=name, fix="write a number or null, or remove the field")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RowError("a number is too large", text=digits, fix="write a number that a 64-bit float can hold")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"duplicate key '{excerpt_name(twice)}'", fix="give each key once")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
LENIENT = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
"""Finds the end of an element that is refused, so that the rest of an array is checked as well."""


def json_rows(text: str, file: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Values of a JSON array or of JSON lines, whichever the text is; what cannot be parsed goes to `bad`."""
    start = _skip_space(text, 0)
    if text.startswith("[", start):
        return _array(text, start, file, bad)
    whole = _spread_object(text, start)
    if whole is not None:
        bad.add(Origin(file, text.count("\n", 0, start) + 1), whole)
        return iter(())
    return _lines(text, file, bad)


def _lines(text: str, file: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    start, number = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        stop = len(text) if end < 0 else end
        line = text[start:stop].strip(BLANK)
        number += 1
        last = not text[stop:].strip() if len(text) - stop < CONTEXT else False
        start = stop + 1
        if not line:
            continue
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            bad.add(Origin(file, number), _reason(error, line, f"line {number}", cut=last))
        else:
            yield number, value


def _array(text: str, start: int, file: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Elements one by one, so that each has its line; one whose end cannot be found ends them."""
    line, counted, place = 1, 0, _skip_space(text, start + 1)
    more = not text.startswith("]", place)
    while more:
        line += text.count("\n", counted, place)
        counted = place
        try:
            value, end = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            bad.add(Origin(file, line), _reason(error, text, "the array", cut=True))
            end = _end_of_element(text, place)
            if end < 0:
                return
        else:
            yield line, value
        place = _skip_space(text, end)
        more = not text.startswith("]", place)
        if more and not text.startswith(",", place):
            bad.add(Origin(file, line + text.count("\n", counted, place)), _no_comma(text, place))
            return
        place = _skip_space(text, place + 1) if more else place
    rest = _skip_space(text, place + 1)
    if rest < len(text):
        what = RowError("text after the end of the array", text[rest : rest + SHOWN], ONE_PER_LINE)
        bad.add(Origin(file, line + text.count("\n", counted, rest)), what)


def _end_of_element(text: str, place: int) -> int:
    try:
        return LENIENT.raw_decode(text, place)[1]
    except (ValueError, RecursionError):
        return -1


def _spread_object(text: str, start: int) -> RowError | None:
    """Why a text is refused whose first object spans several lines or holds all rows; None for JSON lines."""
    end_of_line = text.find("\n", start)
    first_line = text[start:] if end_of_line < 0 else text[start:end_of_line]
    if not first_line.startswith("{"):
        return None
    if first_line.rstrip(BLANK).endswith("}") and _skip_space(text, start + len(first_line)) < len(text):
        return None
    try:
        value, end = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    held = next(iter(value.items())) if len(value) == 1 else ("", None)
    alone = _skip_space(text, end) == len(text)
    if alone and isinstance(held[1], list) and held[1] and isinstance(held[1][0], dict) and "role" not in held[1][0]:
        return RowError(f"one object that holds the rows in '{excerpt_name(held[0])}'", fix="write the array alone")
    if end_of_line < 0 or end <= end_of_line:
        return None
    return RowError("an object over several lines", first_line, f"{ONE_PER_LINE} (jq -c . does it)")


def _reason(error: Exception, text: str, whole: str, *, cut: bool) -> RowError:
    """Say why a value did not parse; `cut` means that nothing follows the text: the file may be cut off."""
    if isinstance(error, RowError):
        return error
    if isinstance(error, RecursionError):
        return RowError("JSON is nested too deep", fix="flatten the value")
    if not isinstance(error, JSONDecodeError):
        return RowError("a number has too many digits", fix="write a smaller number, or a string")
    at_end = not text[error.pos :].strip() or error.msg.startswith("Unterminated string")
    shown = text[max(0, error.pos - CONTEXT) : error.pos + 80]
    if at_end:
        remedy = "the file was cut off: write or copy it again" if cut else ONE_PER_LINE
        return RowError(f"{whole} ends early", text[-80:] if cut else shown, remedy)
    return RowError(f"not JSON ({error.msg[0].lower()}{error.msg[1:]})", shown, ONE_PER_LINE)


def _no_comma(text: str, place: int) -> RowError:
    if place >= len(text):
        return RowError("the array ends early", text[-80:], "the file was cut off: write or copy it again")
    return RowError("no comma between two rows of the array", text[place : place + SHOWN], ONE_PER_LINE)


def _skip_space(text: str, place: int) -> int:
    found = SPACE.match(text, place)
    return found.end() if found else place
