"""Rows of CSV text with a header, each with the line where it begins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_window import TextWindow

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What separates fields, with the names in messages."""

DECLARED = re.compile("sep=(.)(?:\\r?\\n|\\r)")
"""The line before the header by which Excel writes the separator."""

LONGEST_DECLARATION = len("sep=;\r\n")

QUOTES = re.compile('"[^"]*+"')
"""Quoted text, in which neither a separator nor a line end counts."""

MAX_SHOWN = 200
"""Characters of a record that are passed to the error, which shortens them once more when it is printed."""

HEADER = re.compile(r'(?:[^"\r\n]++|"[^"]*+"?+)*+')
"""Text up to the first line end outside quotes."""

WHOLE_HEADER = re.compile(r'(?:[\r\n]++|"[^"]*+")*+(?:[^"\r\n]++|"[^"]*+")*+')
"""Empty lines, and the header up to the line end outside quotes; it matches up to another place if that is missing."""

FIRST_LINE = re.compile(r"[\r\n]*+([^\r\n]*+)")

MAX_HEADER = 1 << 20
"""Characters of a text in which the end of the header is searched."""

SAVE_WITH_COMMAS = "save the file with commas and a header ('CSV UTF-8 (comma delimited)' in Excel)"


class _Syntax:
    """The regular expressions for one separator and one kind of line end.

    Attributes:
        separator: the separator.
        line_feed: the character by which lines are counted.
        quoted: matches a quoted field up to its closing quote, which a separator, a line end or the end follows.
        plain: matches a field without quotes; a carriage return that ends no line belongs to it.
        ending: matches the end of a line.
        after: what follows the closing quote of most fields.
    """

    def __init__(self, separator: str, *, returns: bool = False) -> None:
        """Compile the expressions; `returns` if a carriage return alone ends a line."""
        self.separator = separator
        self.line_feed = "\r" if returns else "\n"
        mark, end = re.escape(separator), r"\r|\Z" if returns else r"\r?\n|\r?\Z"
        # The possessive quantifiers (`++`, `*+`) never backtrack: a long field without an end costs linear time.
        self.quoted = re.compile(rf'"((?:[^"]++|"")*+)"(?={mark}|{end})')
        self.plain = re.compile(rf"[^{mark}\r]*+" if returns else rf"(?:[^{mark}\r\n]++|\r(?!\n|\Z))*+")
        self.ending = re.compile(end)
        self.after = (separator, "\r") if returns else (separator, "\n", "\r\n")


def parse_csv_rows(window: TextWindow, source: Source, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """Parse CSV text into a line number and a dict from column to text for each row; empty lines are skipped.

    Python's csv module is not used: its field limit is global to the process, and it does not report the line in
    which a quote that is never closed was opened.

    Args:
        window: the file's content.
        source: its name; receives a note if other characters than commas separate the fields.
        bad: receives an error for each row that cannot be parsed.
    """
    window.fill(LONGEST_DECLARATION)
    declared = DECLARED.match(window.text)
    start = declared.end() if declared else 0
    _fill_header(window, start)
    first_line = _match(FIRST_LINE, window, start)[1]
    separator = declared[1] if declared else _choose_separator(window.text)
    if separator not in SEPARATORS:
        found = " and ".join(name for mark, name in SEPARATORS.items() if mark in first_line)
        what = f"the header has {found}" if found else f"the fields are separated by '{separator}'"
        bad.refuse(Origin(source.name, 1), RowError(what, first_line, SAVE_WITH_COMMAS))
        return
    if separator != ",":
        source.notes.append(f"separated by {SEPARATORS[separator]}")
    syntax = _Syntax(separator, returns=_ends_with_returns(window, start))
    records = _split_records(window, start, syntax, source.name, bad)
    header_line, header = next(records, (1, []))
    error = check_header(header, first_line)
    if error:
        bad.refuse(Origin(source.name, header_line), error)
        return
    named = all(header)
    for line, fields in records:
        if len(fields) != len(header) and (nul := _find_nul(fields)):
            bad.add(Origin(source.name, line), nul)
            continue
        if len(fields) != len(header):
            error = RowError(
                f"the row has {len(fields)} field{'s' * (len(fields) != 1)}, but the header has {len(header)}",
                separator.join(fields)[:MAX_SHOWN],
                f"put text that contains {SEPARATORS[separator]} in quotes",
            )
            bad.add(Origin(source.name, line), error)
            continue
        values = dict(zip(header, fields, strict=True))
        yield line, values if named else {name: value for name, value in values.items() if name}


def check_header(header: Sequence[str], shown: str) -> RowError | None:
    """Return the error for a header with an empty or repeated name, which `shown` quotes; None for a valid one."""
    # The first column may be without a name: pandas writes its index so, and it is left out.
    if any(not name for name in header[1:]) or len(set(header)) < len(header):
        fix = "give each column a name of its own; where the first line is a row already, write a header before it"
        return RowError("the header has an empty or a repeated name", shown, fix)
    return _find_nul(header)


def _find_nul(fields: Sequence[str]) -> RowError | None:
    """The error for NUL bytes in a line: a file that was not written to its end, or is no text."""
    text = next((field for field in fields if "\0" in field), None)
    return (
        RowError("a line with NUL bytes", text[:MAX_SHOWN], "write, copy or download the file again") if text else None
    )


def _choose_separator(text: str) -> str:
    """Choose the separator by the header outside quotes; "" where another one is as likely.

    A header with commas is separated by them, unless another separator occurs more often.
    """
    header = re.split("[\r\n]", QUOTES.sub("", text[:MAX_HEADER]).lstrip("\r\n"), maxsplit=1)[0]
    counts = {mark: header.count(mark) for mark in SEPARATORS}
    if counts[","] >= max(counts.values()):
        return ","
    found = [mark for mark, count in counts.items() if count]
    return found[0] if len(found) == 1 else ""


def _ends_with_returns(window: TextWindow, start: int) -> bool:
    """Whether lines end with a carriage return alone, as on old Macs; only searched if the first one does."""
    end = _match(HEADER, window, start).end()
    if not window.text.startswith("\r", end) or window.text.startswith("\n", end + 1):
        return False
    return "\n" not in QUOTES.sub("", window.read_all())


def _fill_header(window: TextWindow, start: int) -> None:
    """Let the window grow until it has the header, or `MAX_HEADER` characters."""
    while not window.ended and len(window.text) < MAX_HEADER:
        found = WHOLE_HEADER.match(window.text, start)
        if found and window.text.startswith(("\r", "\n"), found.end()):
            return
        window.grow()


def _match(pattern: re.Pattern[str], window: TextWindow, start: int) -> re.Match[str]:
    """Match a pattern that matches anywhere; the window grows until one more character than the next one is known."""
    while True:
        found = pattern.match(window.text, start)
        if found and (window.ended or found.end() + 1 < len(window.text)):
            return found
        window.grow()


def _split_records(
    window: TextWindow, place: int, syntax: _Syntax, file: str, bad: BadRows
) -> Iterator[tuple[int, list[str]]]:
    """Split the text into records with the line where each begins; white space round names of the header is removed.

    A field that cannot be parsed ends the records: after a wrong quote, no later line end is known to end a record.
    """
    text = window.text
    line, header = 1 + text.count(syntax.line_feed, 0, place), True
    while place < len(text) or not window.ended:
        error, fields, stop, end = _parse_record(text, place, syntax)
        if not window.ended and (error or end >= len(text)):  # the rest of the record may follow the window
            window.grow(place)
            place, text = 0, window.text
            continue
        last = line + text.count(syntax.line_feed, place, stop)  # a quoted field may contain line ends
        if error:
            bad.refuse(Origin(file, last), error)
            return
        if fields != [""]:  # an empty line
            yield line, [field.strip() for field in fields] if header else fields
            header = False
        line, place = last + 1, end


def _parse_record(text: str, place: int, syntax: _Syntax) -> tuple[RowError | None, list[str], int, int]:
    """Parse the record that begins at `place`.

    Returns:
        An error or None, the fields before it, where they end, and where the next record begins.
    """
    end = text.find(syntax.line_feed, place)
    line = text[place:end] if end >= 0 else '"'
    if '"' not in line:
        line = line.removesuffix("\r")
        if "\r" not in line:
            return None, line.split(syntax.separator), end, end + 1
    fields: list[str] = []
    while True:
        error, value, end = _parse_field(text, place, syntax)
        if error:
            return error, fields, place, place
        fields.append(value)
        place = end
        if not text.startswith(syntax.separator, place):
            break
        place += 1
    ending = syntax.ending.match(text, place)
    return None, fields, place, ending.end() if ending else len(text)


def _parse_field(text: str, place: int, syntax: _Syntax) -> tuple[RowError | None, str, int]:
    """Parse the field that begins at `place`: return an error or None, its value, and where the field ends."""
    if text.startswith('"', place):
        close = text.find('"', place + 1)
        if text.startswith(syntax.after, close + 1) and close > 0:  # no quote in it
            return None, text[place + 1 : close], close + 1
        found = syntax.quoted.match(text, place)
        if not found:
            fix = 'close the quote; write a quote inside a field as ""'
            return RowError("a quote is not closed", text[place : place + MAX_SHOWN], fix), "", place
        return None, found[1].replace('""', '"'), found.end()
    found = syntax.plain.match(text, place)
    value = found[0] if found else ""
    # `1, "x, y"` would be split at the comma inside the quotes without any error.
    if value.lstrip(" ").startswith('"'):
        fix = f"remove the space before the quote ({SEPARATORS[syntax.separator]} separate the fields)"
        return RowError("a space before a quote", value[:MAX_SHOWN], fix), "", place
    return None, value, place + len(value)
