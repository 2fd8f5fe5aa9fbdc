"""Rows of any format as rows in this package's columns: what `convert` writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_lightning.data.examples import Example, Origin, Text
from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.formats.recognition import TAKEN, find_format, recognize_kind
from dpo_lightning.data.kinds.pairs import PairExample
from dpo_lightning.data.kinds.ranked import RankedExample
from dpo_lightning.data.kinds.unpaired import UnpairedExample
from dpo_lightning.data.load import KINDS, ReadOptions, RowSet, keep_sound, known_columns, read_set
from dpo_lightning.data.readers.bad_rows import BadRows, Notes
from dpo_lightning.errors import ExitCode, Problem, UserError

AS_THEY_ARE = ReadOptions()
"""Columns have our names or those of a format."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        kind: the kind of the rows.
        rows: the converted rows, as JSON objects.
        left_out: the rows that could not be converted: their place, the reasons, and their columns.
        reasons: reason -> the number of rows that were left out for it.
        lines: what was noticed about the rows, as `fit` prints it.
    """

    kind: KindName
    rows: list[dict[str, Any]]
    left_out: list[dict[str, Any]]
    reasons: Mapping[str, int]
    lines: list[str]


def convert_rows(
    paths: str | Sequence[str], *, kind: KindName | None = None, options: ReadOptions = AS_THEY_ARE
) -> Conversion:
    """Convert the rows of files; rows that `fit` would refuse by themselves are left out.

    Args:
        paths: a file or hub set, or several of one format.
        kind: the kind of the new rows; by default, the format's.
        options: how the columns of the files are read.

    Raises:
        UserError: 64 for a wrong option; 65 if no row can be converted, or a column is not read on which answers may
            depend; 66 for a source that does not exist.
    """
    bad = BadRows(drops=True)
    notes = Notes(bad, strict=False)
    read = read_set(paths, known_columns(*KINDS.values()), bad, options)
    chosen = find_format(options.format)
    source = chosen.kind if chosen else recognize_kind(read.rows, kind, "--to")
    target = kind or source
    if source not in TAKEN[target]:
        what = f"{source} rows cannot be converted to {target} rows"
        raise UserError(ExitCode.CONFIG, Problem(what, where="--to"), fix=f"--to {source}")
    found = RowSet(read, KINDS[target], bad, notes, options)
    examples = found.read_examples()
    found.check_media(examples)
    sound = keep_sound(examples, bad)
    if not sound:
        bad.raise_if_any()
    unread = BadRows()
    found.check_unread(unread)
    unread.raise_if_any()
    rest = {
        row.origin: {name: value for name, value in row.values.items() if name not in found.reader.used}
        for row in found.rows
    }
    left_out, reasons = _describe_left_out(bad, {row.origin: row.values for row in read.rows})
    converted = [format_row(example, rest.get(example.origin, {})) for example in sound]
    return Conversion(target, converted, left_out, reasons, found.format_lines())


def format_row(example: Example, rest: Mapping[str, Any]) -> dict[str, Any]:
    """Format an example as a row in our columns; `rest`, its columns that nothing reads, goes into `meta`."""
    row: dict[str, Any] = {"prompt": _format_text(example.prompt)}
    answers = [_format_text(answer) for answer in example.answers]
    if isinstance(example, PairExample):
        row |= {"chosen": answers[0], "rejected": answers[1]}
        row |= {} if example.margin is None else {"margin": example.margin}
    elif isinstance(example, RankedExample):
        row["responses"] = answers
    else:
        row["completion"] = answers[0]
        row |= {"label": example.good} if isinstance(example, UnpairedExample) else {}
    if example.tools:
        row["tools"] = list(example.tools)
    if example.group:
        row["group"] = example.group
    if example.weight != 1:
        row["weight"] = example.weight
    meta = rest.get("meta")
    kept = {name: value for name, value in rest.items() if name != "meta"}
    row["meta"] = {**(meta if isinstance(meta, dict) else {}), **kept, "origin": str(example.origin)}
    return row


def _format_text(text: Text) -> str | list[dict[str, Any]]:
    return text if isinstance(text, str) else [dict(message) for message in text]


def _describe_left_out(
    bad: BadRows, rows: Mapping[Origin, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], Mapping[str, int]]:
    """The rows that were left out, with all reasons of each, and the number of rows by reason."""
    problems: dict[Origin, list[str]] = {}
    for origin, problem in bad.found:
        problems.setdefault(origin, []).append(problem.what)
    left_out = [
        {"origin": str(origin), "reasons": reasons, "row": rows.get(origin)} for origin, reasons in problems.items()
    ]
    return left_out, Counter(reason for reasons in problems.values() for reason in dict.fromkeys(reasons))


def format_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
