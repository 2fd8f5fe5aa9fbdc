"""Rows of JSON text (an array, one object per line, or one object that contains them), each with its line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.json_arrays import parse_array
from dpo_lightning.data.readers.json_decoding import COMMENT, CONTEXT, DECODER, UNCHECKED, describe_error, skip_space
from dpo_lightning.data.readers.json_objects import find_rows
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_cleaning import excerpt_name
from dpo_lightning.data.readers.text_window import TextWindow

BLANK = " \t\r"


def parse_json_rows(window: TextWindow, source: Source, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse JSON into a line number and a value for each row.

    A text that begins with `[` is an array, one that is a single object contains the rows or is the only one, and any
    other text is JSON lines. Only an object that contains the rows is read as a whole.

    Args:
        window: the file's content.
        source: its name; receives a note if the rows are in an object.
        bad: receives an error for each row that cannot be parsed.
    """
    start = _find_content(window, 0)
    if COMMENT.match(window.text, start):
        shown = window.text[start:].partition("\n")[0]
        error = RowError("the file begins with a comment, which JSON does not have", shown, "remove all comments")
        bad.refuse(Origin(source.name, window.text.count("\n", 0, start) + 1), error)
        return iter(())
    if window.text.startswith("[", start):
        return parse_array(window, start, source.name, bad)
    while "\n" not in window.text and not window.ended:
        window.grow()
    if "\n" not in window.text:
        # Line ends of old Macs; inside a JSON string, a carriage return is escaped.
        window.text = window.text.replace("\r", "\n")
    if not _begins_with_object(window, start):
        return _parse_lines(window, source.name, bad)
    text = window.read_all()
    line = text.count("\n", 0, start) + 1
    try:
        rows = _find_rows_in_object(text, start, source)
    except RowError as error:
        bad.refuse(Origin(source.name, line), error)
        return iter(())
    if isinstance(rows, range):
        return parse_array(TextWindow([text[: rows.stop]]), rows.start, source.name, bad)
    return _parse_lines(window, source.name, bad) if rows is None else ((line, values) for values in rows)


def _find_content(window: TextWindow, place: int) -> int:
    """Find the first character from `place` on that is no white space; the window grows until it has it."""
    while (found := skip_space(window.text, place)) == len(window.text) and not window.ended:
        window.grow()
    return found


def _begins_with_object(window: TextWindow, start: int) -> bool:
    """Whether the text may be one object: not if its first line looks like a whole one, and others follow it."""
    if not window.text.startswith("{", start):
        return False
    while (end := window.text.find("\n", start)) < 0 and not window.ended:
        window.grow()
    whole = end >= 0 and window.text[start:end].rstrip(BLANK).endswith("}")
    return not whole or _find_content(window, end) == len(window.text)


def _parse_lines(window: TextWindow, file: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse each line by itself; empty lines are skipped, and so are lines that are refused."""
    text, start, number = window.text, 0, 0
    decode = DECODER.raw_decode
    while start < len(text) or not window.ended:
        end = text.find("\n", start)
        stop = len(text) if end < 0 else end
        if len(text) - stop < CONTEXT and not window.ended:
            window.grow(start)
            text, start = window.text, 0
            continue
        line = text[start:stop].strip(BLANK)
        number += 1
        start = stop + 1
        if not line:
            continue
        try:
            value, end = decode(line)
            if end < len(line):
                DECODER.decode(line)  # raises the error for what follows the value
        except (ValueError, RecursionError) as error:
            # A broken last line is a sign of a file that was cut off.
            last = len(text) - stop < CONTEXT and not text[stop:].strip()
            bad.add(Origin(file, number), describe_error(error, line, f"line {number}", cut=last))
        else:
            yield number, value


def _find_rows_in_object(text: str, start: int, source: Source) -> range | list[Any] | None:
    """Find the rows in a text that may be one object: where their array is, or the rows; None for JSON lines.

    Raises:
        RowError: the object cannot be read as rows, or has several lines and others follow it: parsed as JSON lines,
            each of its lines would be one error.
    """
    end_of_line = text.find("\n", start)
    first_line = text[start:] if end_of_line < 0 else text[start:end_of_line]
    try:
        value, end = UNCHECKED.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        if end_of_line < 0 or text.startswith("{", skip_space(text, end_of_line)):
            return None
        raise describe_error(error, text, "the object", cut=True) from None
    if skip_space(text, end) < len(text):
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
        raise describe_error(error, text, "the object", cut=True) from None
    return rows


def _find_array(text: str, start: int, name: str) -> range:
    """Find where the value of a key of the object at `start` begins and ends.

    Raises:
        RowError: the object has a key twice.
    """
    found: dict[str, range] = {}
    place = skip_space(text, start + 1)
    while not text.startswith("}", place):
        key, end = UNCHECKED.raw_decode(text, place)
        first = skip_space(text, skip_space(text, end) + 1)  # behind the colon
        if key in found:
            raise RowError(f"duplicate key '{excerpt_name(key)}'", fix="write each key once")
        found[key] = range(first, UNCHECKED.raw_decode(text, first)[1])
        place = skip_space(text, found[key].stop)
        place = skip_space(text, place + 1) if text.startswith(",", place) else place
    return found[name]
