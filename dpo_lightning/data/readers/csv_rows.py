"""Rows of CSV text with a header, each with the line where it begins."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError

# The possessive quantifiers (`++`, `*+`) never backtrack: a long field without an end costs linear time.
QUOTED = re.compile(r'"((?:[^"]++|"")*+)"(?=,|\r?\n|\r?\Z)')
"""A quoted field up to its closing quote, which a comma, a line end or the end of the text follows."""

PLAIN = re.compile(r"(?:[^,\r\n]++|\r(?!\n|\Z))*+")
"""A field without quotes; a carriage return that ends no line belongs to it."""

LINE_END = re.compile(r"\r?\n|\r?\Z")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""Separators that other programs write instead of commas, which are refused, with their names in messages."""

MAX_SHOWN = 200
"""Characters of a record that are passed to the error, which shortens them once more when it is printed."""

SAVE_WITH_COMMAS = "save the file with commas and a header ('CSV UTF-8 (comma delimited)' in Excel)"


def parse_csv_rows(text: str, file: str, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """Parse CSV text into a line number and a dict from column to text for each row; empty lines are skipped.

    Python's csv module is not used: its field limit is global to the process, and it does not report the line in
    which a quote that is never closed was opened.

    Args:
        text: the file's content.
        file: its name in messages.
        bad: receives an error for each row that cannot be parsed.
    """
    first_line = text.lstrip().partition("\n")[0].rstrip("\r")
    for separator, name in SEPARATORS.items():
        if first_line.count(separator) > first_line.count(","):
            bad.add(
                Origin(file, 1),
                RowError(f"the header is separated by {name}, not commas", first_line, SAVE_WITH_COMMAS),
            )
            return
    records = _split_records(text, file, bad)
    header_line, header = next(records, (1, []))
    # The first column may be without a name: pandas writes its index so, and it is left out below.
    if any(not name for name in header[1:]) or len(set(header)) < len(header):
        error = RowError("the header has an empty or a repeated name", first_line, "give each column a name of its own")
        bad.add(Origin(file, header_line), error)
        return
    for line, fields in records:
        if len(fields) != len(header):
            error = RowError(
                f"the row has {len(fields)} field{'s' * (len(fields) != 1)}, but the header has {len(header)}",
                ",".join(fields)[:MAX_SHOWN],
                "put text that contains commas in quotes",
            )
            bad.add(Origin(file, line), error)
            continue
        yield line, {name: value for name, value in zip(header, fields, strict=True) if name}


def _split_records(text: str, file: str, bad: BadRows) -> Iterator[tuple[int, list[str]]]:
    """Split the text into records with the line where each begins; white space round names of the header is removed.

    A field that cannot be parsed ends the records: after a wrong quote, no later line end is known to end a record.
    """
    place, line, header = 0, 1, True
    while place < len(text):
        first, fields = line, []
        while True:
            error, value, end = _parse_field(text, place)
            if error:
                bad.add(Origin(file, line), error)
                return
            fields.append(value)
            # A quoted field may contain line ends.
            line += text.count("\n", place, end)
            place = end
            if not text.startswith(",", place):
                break
            place += 1
        ending = LINE_END.match(text, place)
        place = ending.end() if ending else len(text)
        line += 1
        if fields != [""]:  # an empty line
            yield first, [field.strip() for field in fields] if header else fields
            header = False


def _parse_field(text: str, place: int) -> tuple[RowError | None, str, int]:
    """Parse the field that begins at `place`: return an error or None, its value, and where the field ends."""
    if text.startswith('"', place):
        found = QUOTED.match(text, place)
        if not found:
            fix = 'close the quote; write a quote inside a field as ""'
            return RowError("a quote is not closed", text[place : place + MAX_SHOWN], fix), "", place
        return None, found[1].replace('""', '"'), found.end()
    found = PLAIN.match(text, place)
    value = found[0] if found else ""
    # `1, "x, y"` would be split at the comma inside the quotes without any error.
    if value.lstrip(" ").startswith('"'):
        return (
            RowError("a space before a quote", value[:MAX_SHOWN], "remove the space between the comma and the quote"),
            "",
            place,
        )
    return None, value, place + len(value)
