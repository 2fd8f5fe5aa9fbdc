"""Formats a report as lines for a terminal, with the scored parts of the first rows in colour."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from dpo_lightning.data.checks.display_width import fold, measure_width, pad, quote_ends
from dpo_lightning.data.checks.first_rows import ShownRow, ShownText
from dpo_lightning.data.checks.lengths import LongerWins
from dpo_lightning.data.checks.report import Report
from dpo_lightning.data.readers.left_out import format_places
from dpo_lightning.errors import MAX_SHOWN
from dpo_lightning.terminal import one_line

DIM, BRIGHT, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
SCORED = "«", "»"
"""Mark a scored part where there are no colours and not everything is scored."""

NO_BREAK = "\u00a0=\u00a0"
"""An equals sign between spaces at which no line ends."""

TEXT_LINES = 2
"""Lines that a text of a row takes at most."""

LABEL = 24
"""Columns of the names of figures."""

NAME = 12
"""Columns of the names of texts."""

SCRIPTS = 6
"""Scripts that are listed."""


@dataclass
class Layout:
    """The width in columns, and whether colours are used."""

    width: int
    colour: bool

    def fill(self, text: str, first: str = "  ", later: str = "    ") -> Iterator[str]:
        """Wrap a text of one paragraph; two places with an equals sign between them stay on one line."""
        lines = textwrap.wrap(
            one_line(text).replace(" = ", NO_BREAK),
            self.width,
            initial_indent=first,
            subsequent_indent=later,
            break_on_hyphens=False,
            break_long_words=False,
        )
        yield from (line.replace(NO_BREAK, " = ") for line in lines)


def use_colour() -> bool:
    """Whether standard output is a terminal that shows colours, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def format_report(report: Report, layout: Layout) -> Iterator[str]:
    """Yield the lines of a report, without its errors."""
    yield from format_head(report, layout)
    if report.first_rows:
        yield ""
        yield f"first rows, as they are trained ({describe_marks(report, layout)})"
        for row in report.first_rows:
            yield from format_row(row, layout)
    if report.lengths:
        yield ""
        yield from format_lengths(report)
        yield from format_figures(report, layout)
    yield from format_notes(report, layout)
    yield from format_findings(report, layout)
    if report.held_out:
        yield ""
        yield "held-out rows"
        yield from format_head(report.held_out, layout)
        yield from format_notes(report.held_out, layout)
        yield from format_findings(report.held_out, layout)
    yield ""
    problems = sum(len(error.problems) for error in report.all_errors)
    where = "below" if problems <= MAX_SHOWN else f"the first {MAX_SHOWN} below, all with --json"
    refused = f"would refuse these rows: {count(problems, 'problem')}, {where}"
    yield f"result: `fit` {refused if problems else 'would take these rows'}"


def format_head(report: Report, layout: Layout) -> Iterator[str]:
    """Yield the files, the kind and the number of rows."""
    kind = {"sft": "SFT rows", "pairs": "pairs", "ranked": "ranked lists", "unpaired": "unpaired rows"}[report.kind]
    how = " (recognized by the columns)" if report.recognized else ""
    yield from layout.fill(", ".join(report.files), "files    ", "         ")
    yield f"kind     {kind}{how}"
    yield f"rows     {report.rows:,}" + (" (without those that have errors)" if report.errors else "")


def describe_marks(report: Report, layout: Layout) -> str:
    """Explain how scored parts are marked."""
    unscored = any(not piece.scored for row in report.first_rows for text in list_scored(row) for piece in text.pieces)
    if layout.colour:
        return "bright: scored"
    return "«scored»" if unscored else "answers are scored"


def list_scored(row: ShownRow) -> list[ShownText]:
    """The texts of a row that have a scored part."""
    return [text for text in row.texts if any(piece.scored for piece in text.pieces)]


def format_row(row: ShownRow, layout: Layout) -> Iterator[str]:
    """Yield the lines of a row."""
    label = "" if row.label is None else ", good" if row.label else ", bad"
    yield f"  {one_line(row.where)}{label}" + (f", weight {row.weight:g}" if row.weight != 1 else "")
    for text in row.texts:
        yield from format_text(text, layout)


def format_text(text: ShownText, layout: Layout) -> Iterator[str]:
    """Yield the lines of a text: whole, or its beginning and end; each line has its own colours."""
    indent = f"    {pad(one_line(text.name), NAME)}"
    width = layout.width - measure_width(indent)
    scored = any(piece.scored for piece in text.pieces)
    marked = scored and not layout.colour and not all(piece.scored for piece in text.pieces)
    # Few pieces are usual: the answer, the line end after it. Each gets room by its length.
    total = sum(len(piece.text) for piece in text.pieces)
    parts: list[tuple[str, str]] = []
    for piece in text.pieces[:MOST_PIECES]:
        room = max(LEAST_ROOM, (TEXT_LINES * width - 2 * len(text.pieces)) * len(piece.text) // max(total, 1))
        head, tail = quote_ends(piece.text, room)
        style = BRIGHT if piece.scored else "" if scored else DIM
        shown = f"{head}…{tail}" if tail else head
        parts.append((f"{SCORED[0]}{shown}{SCORED[1]}" if marked and piece.scored else shown, style))
    if len(text.pieces) > MOST_PIECES:
        parts.append((" …", ""))
    for line in fold_styled(parts, width):
        yield indent + "".join(paint(part, style, layout) for part, style in line)
        indent = " " * measure_width(indent)


MOST_PIECES = 6
"""Pieces of a text that are shown."""

LEAST_ROOM = 16
"""Columns that a piece of a text gets at least."""


def fold_styled(parts: list[tuple[str, str]], width: int) -> Iterator[list[tuple[str, str]]]:
    """Split parts with styles into lines of at most `width` columns."""
    line: list[tuple[str, str]] = []
    used = 0
    for text, style in parts:
        lines = list(fold(" " * used + text, width))  # the spaces stand for what is on the line already
        line.append((lines[0][used:], style))
        for further in lines[1:]:
            yield line
            line = [(further, style)]
        used = sum(measure_width(part) for part, _ in line)
    yield line


def paint(text: str, style: str, layout: Layout) -> str:
    """Put a text between the codes of a style, where colours are used."""
    return f"{style}{text}{RESET}" if layout.colour and style and text else text


def format_lengths(report: Report) -> Iterator[str]:
    """Yield the table of lengths."""
    lengths = report.lengths
    assert lengths is not None
    yield f"{'length in ' + lengths.unit:<{LABEL}}{'median':>10}{'90 %':>10}{'longest':>10}"
    for name, row in lengths.texts.items():
        label = "row (longest answer)" if name == "row" else name
        yield f"  {label:<{LABEL - 2}}{row.median:>10,}{row.p90:>10,}{row.max:>10,}"


def format_figures(report: Report, layout: Layout) -> Iterator[str]:
    """Yield the other figures, a line each."""
    lengths, wins = report.lengths, report.longer_wins
    if lengths and lengths.max_length is not None:
        what = f"{lengths.over_max_length:,} rows over {lengths.max_length:,} tokens"
        yield f"{'max_length':<{LABEL}}{what}"
    if wins is not None:
        yield from layout.fill(describe_wins(wins), f"{'longer answer wins':<{LABEL}}", " " * LABEL)
    listed = list(report.scripts.items())
    shares = ", ".join(f"{name} {share:.1%}" for name, share in listed[:SCRIPTS])
    more = f", {len(listed) - SCRIPTS} more" if len(listed) > SCRIPTS else ""
    yield from layout.fill(shares + more, f"{'scripts of prompts':<{LABEL}}", " " * LABEL)
    yield f"{'different prompts':<{LABEL}}{report.prompts:,}"


def describe_wins(wins: LongerWins) -> str:
    """Describe how often the longer answer is the better one, and warn where it nearly decides."""
    share, low, high = wins.interval
    text = f"{share:.1%} of {count(wins.rows, 'row')} (95 % interval {low:.1%} to {high:.1%})"
    text += f", {count(wins.ties, 'tie')}" if wins.ties else ""
    if wins.biased:
        text += f"; warning: the {wins.biased} answer is so often the better one that its length may be learned"
    return text


def format_notes(report: Report, layout: Layout) -> Iterator[str]:
    """Yield the notes of `fit`."""
    if report.notes:
        yield ""
        yield "notes of `fit`"
        for note in report.notes:
            yield from layout.fill(note)


def format_findings(report: Report, layout: Layout) -> Iterator[str]:
    """Yield the doubtful rows by kind: the count, the first places and the advice."""
    if not report.rows:
        return
    yield ""
    yield "doubtful rows" if report.findings else "doubtful rows: none"
    for finding in report.findings:
        yield from layout.fill(f"{finding.what}: {len(finding.places):,}")
        yield from layout.fill(format_places(finding.places), "    ")
        yield from layout.fill(f"({finding.advice})", "    ")


def count(number: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
