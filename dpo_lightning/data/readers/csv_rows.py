"""CSV text with a header into rows with the line of each."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError

QUOTED = re.compile(r'"((?:[^"]++|"")*+)"(?=,|\r?\n|\r?\Z)')
PLAIN = re.compile(r"(?:[^,\r\n]++|\r(?!\n|\Z))*+")
LINE_END = re.compile(r"\r?\n|\r?\Z")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
SHOWN = 200
WITH_COMMAS = "save it with commas and a header ('CSV UTF-8 (comma delimited)' in Excel)"


def csv_rows(text: str, file: str, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows by the names of the header, all values strings; what cannot be parsed goes to `bad`.

    The csv module is not used: its field limit is a global, and it does not tell where an open quote began.
    """
    first_line = text.lstrip().partition("\n")[0].rstrip("\r")
    for separator, name in SEPARATORS.items():
        if first_line.count(separator) > first_line.count(","):
            bad.add(
                Origin(file, 1),
                RowError(f"a header separated by {name}, not commas", first_line, WITH_COMMAS),
            )
            return
    records = _records(text, file, bad)
    header_line, header = next(records, (1, []))
    # pandas writes its index as a first column without a name
    if any(not name for name in header[1:]) or len(set(header)) < len(header):
        what = RowError("the header has an empty or a repeated name", first_line, "give each column a name of its own")
        bad.add(Origin(file, header_line), what)
        return
    for line, fields in records:
        if len(fields) != len(header):
            what = RowError(
                f"{len(fields)} fields where the header has {len(header)}",
                ",".join(fields)[:SHOWN],
                "put quotes round text that has commas",
            )
            bad.add(Origin(file, line), what)
            continue
        yield line, {name: value for name, value in zip(header, fields, strict=True) if name}


def _records(text: str, file: str, bad: BadRows) -> Iterator[tuple[int, list[str]]]:
    """Records with the line of each, the header's names stripped; an open quote ends the reading."""
    place, line, header = 0, 1, True
    while place < len(text):
        first, fields = line, []
        while True:
            error, value, end = _field(text, place)
            if error:
                bad.add(Origin(file, line), error)
                return
            fields.append(value)
            line += text.count("\n", place, end)
            place = end
            if not text.startswith(",", place):
                break
            place += 1
        ending = LINE_END.match(text, place)
        place = ending.end() if ending else len(text)
        line += 1
        if fields != [""]:
            yield first, [field.strip() for field in fields] if header else fields
            header = False


def _field(text: str, place: int) -> tuple[RowError | None, str, int]:
    if text.startswith('"', place):
        found = QUOTED.match(text, place)
        if not found:
            fix = 'close the quote; a quote inside a field is written ""'
            return RowError("a quote is not closed", text[place : place + SHOWN], fix), "", place
        return None, found[1].replace('""', '"'), found.end()
    found = PLAIN.match(text, place)
    value = found[0] if found else ""
    if value.lstrip(" ").startswith('"'):
        return (
            RowError("a space before a quote", value[:SHOWN], "write no space between comma and quote"),
            "",
            place,
        )
    return None, value, place + len(value)
