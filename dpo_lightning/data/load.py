"""`load_examples`: reads files as examples of one kind, and reports every bad row in one error."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from dpo_lightning.data.cache.spilled_list import SpilledList
from dpo_lightning.data.formats.base import Format, KindName
from dpo_lightning.data.formats.between_kinds import convert_kind
from dpo_lightning.data.formats.own import OwnFormat, Ranked
from dpo_lightning.data.formats.recognition import AUTO, MAPPABLE, OWN, RECIPES, TAKEN, find_format, recognize
from dpo_lightning.data.kinds.columns import check_same_columns, count_columns, remove_columns, rename
from dpo_lightning.data.kinds.duplicates import check_allowances, check_types
from dpo_lightning.data.kinds.list_order import check_list_order
from dpo_lightning.data.kinds.markup import note_markup
from dpo_lightning.data.kinds.media_columns import check_media, check_placeholders
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.kinds.unread_columns import check_unread, describe_unused
from dpo_lightning.data.progress import track
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.invisible_characters import find_invisible_kinds
from dpo_lightning.data.readers.left_out import BadRowsOption
from dpo_lightning.data.readers.sources import Row, read_files
from dpo_lightning.errors import ExitCode, Problem, UserError

KINDS: dict[KindName, type[RowKind]] = {
    "pairs": PairKind,
    "ranked": RankedKind,
    "unpaired": UnpairedKind,
    "sft": SFTKind,
}


@dataclass(frozen=True)
class ReadOptions:
    """How the columns of files are read.

    Attributes:
        columns: our column name -> the file's.
        columns_optional: see `columns.rename`.
        format: the name of the format of the rows, or `auto`, which recognizes it.
        ignore_columns: columns that are removed although the answers may depend on them.
        first_wins: for rows of two answers and a verdict, the value with which the first answer wins.
        limit_rows: the number of rows that are used at most, drawn at random; None uses all.
        seed: the seed by which they are drawn.
        text_column: the column of a row that is a text and not an object; if None, such a row is bad.
        bad_rows: whether a bad row is an `error`, or left out (`drop`).
    """

    columns: Mapping[str, str] | None = None
    columns_optional: bool = False
    format: str = AUTO
    ignore_columns: Collection[str] = ()
    first_wins: str | int | None = None
    limit_rows: int | None = None
    seed: int = 0
    text_column: str | None = None
    bad_rows: BadRowsOption = "error"


def load_examples(
    kind: type[RowKind],
    paths: str | Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    columns_optional: bool = False,
    allow: Collection[str] = (),
    format: str = AUTO,
    ignore_columns: Collection[str] = (),
    first_wins: str | int | None = None,
    limit_rows: int | None = None,
    seed: int = 0,
    bad: BadRows | None = None,
) -> tuple[Sequence[Any], list[str]]:
    """Read the rows of files as examples; also return the warnings about them, with counts and the first lines.

    Args:
        kind: the kind of the rows.
        paths: a file or hub set, or several of one kind.
        columns: our column name -> the file's.
        strict: treat warnings about rows as errors.
        columns_optional: see `columns.rename`.
        allow: `contradictions` accepts rows that contradict one another, with a warning.
        format: the name of the format of the rows, or `auto`, which recognizes it.
        ignore_columns: columns that are left aside although the answers may depend on them.
        first_wins: for rows of two answers and a verdict, the value with which the first answer wins.
        limit_rows: the number of rows that are used at most, drawn at random; None uses all.
        seed: the seed by which they are drawn.
        bad: collects the bad rows; with `drops`, they are left out.

    Raises:
        UserError: 64 for a wrong option, 65 for bad rows (all of them), 66 for a source that does not exist.
    """
    check_allowances(allow)
    bad = BadRows() if bad is None else bad
    options = ReadOptions(columns, columns_optional, format, ignore_columns, first_wins, limit_rows, seed)
    rows = read_set(paths, known_columns(kind), bad, options)
    found = RowSet(rows, kind, bad, Notes(bad, strict=strict), options)
    examples = found.check(found.read_examples(), allow)
    bad.leave_out()
    return examples, found.format_lines()


def known_columns(*kinds: type[RowKind]) -> set[str]:
    """The names of columns that `--data.columns` may map for rows of these kinds, those of formats included."""
    names = {name for kind in kinds for name in kind.known()}
    return names | set(MAPPABLE) if any(kind.reads for kind in kinds) else names


class ReadRows(NamedTuple):
    """The rows of files, and the warnings about the files: what was guessed of their encoding or layout."""

    rows: Sequence[Row]
    lines: list[str]


def read_set(paths: str | Sequence[str], known: Collection[str], bad: BadRows, options: ReadOptions) -> ReadRows:
    """Read all rows of a set with the columns that the user named renamed to ours, and check its size.

    Args:
        paths: a file or hub set, or several.
        known: our names of columns.
        bad: collects the errors.
        options: how columns are read.

    Raises:
        UserError: as in `load_examples`, but not for single bad rows.
    """
    lines: list[str] = []
    found = SpilledList(track(read_files(paths, bad, lines, options.text_column), "reading rows"))
    if not found:
        bad.raise_if_any()
    if len(found) == 1:
        lines.append("there is only 1 row")
    if options.limit_rows is not None and options.limit_rows < len(found):
        lines.append(f"{options.limit_rows:,} of {len(found):,} rows are used, drawn by the seed {options.seed}")
        places = sorted(random.Random(options.seed).sample(range(len(found)), options.limit_rows))
        found = SpilledList(found[place] for place in places)
    kept = remove_columns(found, options.ignore_columns, columns_optional=options.columns_optional)
    return ReadRows(rename(kept, options.columns, known, columns_optional=options.columns_optional), lines)


class RowSet:
    """The rows of a set in our columns, and what reads them as examples of a kind.

    Attributes:
        converter: the format that the rows had.
        rows: the converted rows.
        reader: reads the rows.
    """

    def __init__(self, read: ReadRows, kind: type[RowKind], bad: BadRows, notes: Notes, options: ReadOptions) -> None:
        """Recognize the format of rows and convert them.

        Args:
            read: the rows of files.
            kind: the kind of the examples.
            bad: collects the errors of rows.
            notes: collects the warnings about rows.
            options: how columns are read.

        Raises:
            UserError: 64 for a format of another kind, 65 if no row is left or a column is missing.
        """
        self.bad, self.notes, self.lines = bad, notes, read.lines
        bad.total = len(read.rows)
        columns = options.columns or {}
        self.converter = _choose_format(read.rows, kind, options.format)
        self.converter.configure(columns, options.first_wins)
        self._read = read.rows
        self.rows = self._convert(read.rows, kind)
        if not self.rows:
            bad.raise_if_any()
            what = f"no row is left: {'; '.join(notes.format_lines())}"
            problem = Problem(what, where=str(read.rows[0].origin))
            raise UserError(ExitCode.DATA, problem, fix="give rows that prefer one answer")
        check_same_columns(self.rows, kind.columns)
        self._counts = count_columns(self.rows)
        # With a question column that was named or guessed, the question may have a second column.
        self.named = self.converter.guesses or "prompt" in columns
        names = {**self.converter.renames, **columns}
        self.reader = kind.choose(self._counts)(self.rows, names, bad, notes)
        self._empty_prompts = bytearray()
        self._media: set[str] = set()  # columns with pictures, video or sound

    def read_examples(self) -> SpilledList[Any]:
        """Read the rows; those with a fault in a column that is read are bad."""
        used = self.reader.used
        examples: SpilledList[Any] = SpilledList()
        self._empty_prompts = bytearray(len(self.rows))
        for number, row in enumerate(track(self.rows, "checking rows", len(self.rows))):
            if row.add_faults(used, self.bad):
                continue
            for example in self.reader.read(row):
                examples.append(example)
                self._empty_prompts[number] |= not example.prompt
        return examples

    def check(self, examples: Sequence[Any], allow: Collection[str]) -> Sequence[Any]:
        """Compare the rows, and look for columns and texts that were probably not meant; see `load_examples`.

        Returns:
            The rows; those that are sound where bad ones are left out.
        """
        check_types(examples, self.bad)
        self.check_media(examples)
        self.check_unread(self.bad)
        examples = keep_sound(examples, self.bad)
        self.reader.check(examples, allow, self.bad, self.notes)
        self._note_invisible()
        note_markup(examples, self.notes)
        examples = keep_sound(examples, self.bad)
        if self.bad.drops:
            self.bad.total = len(self.bad.origins) + sum(1 for _ in groupby(examples, attrgetter("origin")))
        return examples

    def check_media(self, examples: Sequence[Any]) -> None:
        """Report rows that need pictures, video or sound."""
        self._media = check_media(self.rows, self._unread, self.bad)
        if self.bad.drops or not self._media:  # the error for the columns names their placeholders too
            check_placeholders(examples, self.bad)

    @property
    def _unread(self) -> list[str]:
        return [name for name in self._counts if name not in self.reader.used]

    def check_unread(self, bad: BadRows) -> None:
        """Report columns that are not read although answers, or their order, may depend on them, to `bad`."""
        left_out = self.bad.origins if self.bad.drops else frozenset()
        if isinstance(self.converter, Ranked):
            rows = SpilledList(row for row in self._read if row.origin not in left_out) if left_out else self._read
            check_list_order(rows, bad)
        unread = [name for name in self._unread if name not in self._media]
        check_unread(self.rows, self.reader.used, unread, self._empty_prompts, bad, named=self.named, left_out=left_out)

    def _note_invisible(self) -> None:
        """Note rows that have invisible characters in a column that is read."""
        used, faulty = self.reader.used, self.bad.origins
        for row in self.rows:
            if row.origin in faulty:
                continue
            kinds = set().union(*(find_invisible_kinds(value) for name, value in row.values.items() if name in used))
            for kind in sorted(kinds):
                self.notes.add(row.origin, f"rows with {kind}", fix="remove the characters from the texts")

    def format_lines(self) -> list[str]:
        """The lines about the set: its files and format, the warnings, how columns were read, and which were not."""
        own = isinstance(self.converter, OwnFormat)
        lines = [*self.lines, *([] if own else [f"read as: {self.converter.describe()}"])]
        unused = describe_unused(self.rows, self._counts, self.reader.used)
        return [*lines, *self.notes.format_lines(), *self.reader.context.lines(), *unused]

    def _convert(self, rows: Sequence[Row], kind: type[RowKind]) -> Sequence[Row]:
        """Convert rows to our columns of the kind that is read."""
        if kind.reads is None or (isinstance(self.converter, OwnFormat) and kind.reads == self.converter.kind):
            return rows
        return SpilledList(self._convert_each(rows, kind.reads))

    def _convert_each(self, rows: Sequence[Row], kind: KindName) -> Iterator[Row]:
        for row in self.converter.convert_rows(rows, self.bad, self.notes):
            try:
                yield row._replace(values=convert_kind(row.values, self.converter.kind, kind))
            except RowError as error:
                self.bad.add(row.origin, error)


def keep_sound(examples: Sequence[Any], bad: BadRows) -> Sequence[Any]:
    """The rows without bad ones, where these are left out."""
    if not (bad and bad.drops):
        return examples
    faulty = bad.origins
    return SpilledList(example for example in examples if example.origin not in faulty)


def _choose_format(rows: Sequence[Row], kind: type[RowKind], name: str) -> Format:
    """Create the converter of the format that the user named, or that recognizes the rows."""
    chosen = find_format(name)
    if kind.reads is None:
        return OwnFormat(rows)
    if chosen is None:
        return recognize(rows, kind.reads)(rows)
    if chosen.kind not in TAKEN[kind.reads]:
        what = f"rows of the format {name} are {OWN[chosen.kind].title}, which this module does not take"
        raise UserError(
            ExitCode.CONFIG,
            Problem(what, where="data.format"),
            fix=f"--config {RECIPES[chosen.kind]}",
        )
    return chosen(rows)
