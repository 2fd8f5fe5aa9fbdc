"""Rows of JSON text (an array, one object per line, or one object that contains them), each with its line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.json_objects import find_rows
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_cleaning import excerpt_name

SPACE = re.compile(r"[ \t\r\n]*")
BLANK = " \t\r"
CONTEXT = 30
"""Characters before a syntax error that are quoted."""

MAX_SHOWN = 200
"""Characters of a text that are passed to an error, which shortens them once more when it is printed."""

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


def parse_json_rows(text: str, source: Source, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse JSON into a line number and a value for each row.

    A text that begins with `[` is an array, one that is a single object contains the rows or is the only one, and any
    other text is JSON lines.

    Args:
        text: the file's content.
        source: its name; receives a note if the rows are in an object.
        bad: receives an error for each row that cannot be parsed.
    """
    start = _skip_space(text, 0)
    if text.startswith("[", start):
        return _parse_array(text, start, source.name, bad)
    if "\n" not in text:
        text = text.replace("\r", "\n")  # line ends of old Macs; inside a JSON string, a carriage return is escaped
    line = text.count("\n", 0, start) + 1
    try:
        rows = _find_rows_in_object(text, start, source)
    except RowError as error:
        bad.add(Origin(source.name, line), error)
        return iter(())
    if isinstance(rows, range):
        return _parse_array(text[: rows.stop], rows.start, source.name, bad)
    return _parse_lines(text, source.name, bad) if rows is None else ((line, values) for values in rows)


def _parse_lines(text: str, file: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse each line by itself; empty lines are skipped, and so are lines that are refused."""
    start, number = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        stop = len(text) if end < 0 else end
        line = text[start:stop].strip(BLANK)
        number += 1
        # A broken last line is a sign of a file that was cut off; `len` avoids copying the rest at each line.
        last = not text[stop:].strip() if len(text) - stop < CONTEXT else False
        start = stop + 1
        if not line:
            continue
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            bad.add(Origin(file, number), _describe_error(error, line, f"line {number}", cut=last))
        else:
            yield number, value


def _parse_array(text: str, start: int, file: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse the elements of an array one by one, to know the line of each.

    An element that is refused is skipped; if its end cannot be found, the elements after it are not parsed.
    """
    line, counted, place = 1, 0, _skip_space(text, start + 1)
    more = not text.startswith("]", place)
    while more:
        line += text.count("\n", counted, place)
        counted = place
        try:
            value, end = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            bad.add(Origin(file, line), _describe_error(error, text, "the array", cut=True))
            end = _find_element_end(text, place)
            if end < 0:
                return
        else:
            yield line, value
        place = _skip_space(text, end)
        more = not text.startswith("]", place)
        if more and not text.startswith(",", place):
            bad.add(Origin(file, line + text.count("\n", counted, place)), _missing_comma_error(text, place))
            return
        place = _skip_space(text, place + 1) if more else place
    rest = _skip_space(text, place + 1)
    if rest < len(text):
        trailing = RowError("text after the end of the array", text[rest : rest + MAX_SHOWN], ONE_PER_LINE)
        bad.add(Origin(file, line + text.count("\n", counted, rest)), trailing)


def _find_element_end(text: str, place: int) -> int:
    """Find where the element at `place` ends; -1 if its syntax is wrong, so that no end can be found."""
    try:
        return LENIENT.raw_decode(text, place)[1]
    except (ValueError, RecursionError):
        return -1


def _find_rows_in_object(text: str, start: int, source: Source) -> range | list[Any] | None:
    """Find the rows in a text that is one object: where their array is, or the rows; None for JSON lines.

    Raises:
        RowError: the object cannot be read as rows, or has several lines and others follow it: parsed as JSON lines,
            each of its lines would be one error.
    """
    end_of_line = text.find("\n", start)
    first_line = text[start:] if end_of_line < 0 else text[start:end_of_line]
    if not first_line.startswith("{"):
        return None
    if first_line.rstrip(BLANK).endswith("}") and _skip_space(text, start + len(first_line)) < len(text):
        return None
    try:
        value, end = UNCHECKED.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        if end_of_line < 0 or text.startswith("{", _skip_space(text, end_of_line)):
            return None
        raise _describe_error(error, text, "the object", cut=True) from None
    if _skip_space(text, end) < len(text):
        if end_of_line < 0 or end <= end_of_line:
            return None
        command = source.format_conversion("jq -c .", "lines", ".jsonl")
        raise RowError("an object over several lines", first_line, command)
    rows = find_rows(value, source)
    if isinstance(rows, str):
        return _find_array(text, start, rows)
    try:
        DECODER.raw_decode(text, start)  # once more for its checks of numbers and keys
    except (ValueError, RecursionError) as error:
        raise _describe_error(error, text, "the object", cut=True) from None
    return rows


def _find_array(text: str, start: int, name: str) -> range:
    """Find where the value of a key of the object at `start` begins and ends.

    Raises:
        RowError: the object has a key twice.
    """
    found: dict[str, range] = {}
    place = _skip_space(text, start + 1)
    while not text.startswith("}", place):
        key, end = UNCHECKED.raw_decode(text, place)
        first = _skip_space(text, _skip_space(text, end) + 1)  # behind the colon
        if key in found:
            raise RowError(f"duplicate key '{excerpt_name(key)}'", fix="write each key once")
        found[key] = range(first, UNCHECKED.raw_decode(text, first)[1])
        place = _skip_space(text, found[key].stop)
        place = _skip_space(text, place + 1) if text.startswith(",", place) else place
    return found[name]


def _describe_error(error: Exception, text: str, whole: str, *, cut: bool) -> RowError:
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
    shown = text[max(0, error.pos - CONTEXT) : error.pos + 80]
    if at_end:
        remedy = "the file is cut off: write or copy it again" if cut else ONE_PER_LINE
        return RowError(f"{whole} ends early", text[-80:] if cut else shown, remedy)
    return RowError(f"not JSON ({error.msg[0].lower()}{error.msg[1:]})", shown, ONE_PER_LINE)


def _missing_comma_error(text: str, place: int) -> RowError:
    if place >= len(text):
        return RowError("the array ends early", text[-80:], "the file is cut off: write or copy it again")
    return RowError("no comma between two rows of the array", text[place : place + MAX_SHOWN], ONE_PER_LINE)


def _skip_space(text: str, place: int) -> int:
    found = SPACE.match(text, place)
    return found.end() if found else place
