"""Reads a set of rows as `fit` does, and keeps the sound ones and the notes where `fit` would refuse the set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dpo_lightning.data.formats import recognition
from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.formats.recognition import SAMPLE, find_format
from dpo_lightning.data.kinds.columns import rename
from dpo_lightning.data.load import KINDS, ReadOptions, RowSet, known_columns, read_set
from dpo_lightning.data.readers.bad_rows import BadRows, Notes
from dpo_lightning.data.readers.sources import read_files
from dpo_lightning.errors import ExitCode, UserError


@dataclass
class CheckedRows:
    """The rows of files as read for training.

    Attributes:
        examples: the sound rows; none if reading stopped early.
        notes: the warnings about them, as `fit` prints them.
        places: the rows that a warning counts, by its kind; all of them.
        errors: why `fit` refuses the set.
        bad: the bad rows.
    """

    examples: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    places: dict[str, list[str]] = field(default_factory=dict)
    errors: list[UserError] = field(default_factory=list)
    bad: BadRows = field(default_factory=BadRows)


def check_rows(
    kind: KindName, paths: Sequence[str], options: ReadOptions, *, strict: bool = False, allow: Collection[str] = ()
) -> CheckedRows:
    """Read the rows of files; the arguments are those of `load_examples`.

    Raises:
        UserError: 64 for a wrong option, 66 for a source that does not exist.
    """
    bad = BadRows(drops=options.bad_rows == "drop")
    checked = CheckedRows(bad=bad)
    notes = Notes(bad, strict=strict, most=None)
    try:
        read = read_set(paths, known_columns(KINDS[kind]), bad, options)
        found = RowSet(read, KINDS[kind], bad, notes, options)
        checked.examples = list(found.read_examples())
        checked.examples = list(found.check(checked.examples, allow))
        checked.notes = found.format_lines()
        if not bad.drops:  # otherwise, further rows may be bad as tokens
            bad.leave_out()
    except UserError as error:
        if error.code != ExitCode.DATA:
            raise
        checked.errors.append(error)
        checked.notes = checked.notes or notes.format_lines()
    checked.places = notes.places
    return checked


def recognize_kind(paths: Sequence[str], options: ReadOptions) -> KindName:
    """The kind of the rows of files, by their first rows.

    Raises:
        UserError: as in `read_files`; 65 if no format claims the rows.
    """
    chosen = find_format(options.format)
    if chosen is not None:
        return chosen.kind
    first = list(islice(read_files(paths, BadRows(most=None)), SAMPLE))
    if not first:  # what is wrong with the file is told when all of it is read
        return "sft"
    rows = rename(first, options.columns, known_columns(*KINDS.values()), columns_optional=True)
    return recognition.recognize_kind(rows, None, "--kind")
