"""`Format`, the base of all formats: recognizes rows by their columns and converts them to this package's columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name
from dpo_lightning.errors import ExitCode, Problem, UserError

KindName: TypeAlias = Literal["pairs", "ranked", "unpaired", "sft"]
"""What rows teach: preference pairs, ranked lists, answers with a label, or demonstrations."""


NEEDED = ("prompt", "chosen", "rejected", "completion", "messages")
"""Our columns that are never null where a format converts to them."""


class LeftOut(Exception):  # noqa: N818 - the row is valid
    """Raised by `Format.convert` for a valid row without a preference, such as a tie; it is counted and not read."""

    def __init__(self, reason: str) -> None:
        """Store the reason, the same text for all rows that are left out for it."""
        super().__init__(reason)
        self.reason = reason


class Format(ABC):
    """The columns and nesting of the rows of one tool or data set; subclasses convert them to this package's columns.

    Attributes:
        name: its name in `--data.format`.
        title: what its rows are called in messages.
        kind: the kind of the converted rows.
        columns: the columns that every row has.
        optional: further columns that are read; all others keep their names.
        renames: our column -> the file's column that it comes from, for error messages.
        rows: the rows of the set.
        guesses: whether columns are assigned by their names alone; other columns with text are then errors.
        mappable: columns that only this format has and that `--data.columns` may map to a file's.
        has_verdict: whether `--data.first_wins` applies.
        mapped: our column -> the file's, as the user gave them.
        first_wins: the value of a verdict with which the first answer wins; None if the user gave none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[KindName]
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    renames: Mapping[str, str] = {}
    guesses: ClassVar[bool] = False
    mappable: ClassVar[tuple[str, ...]] = ()
    has_verdict: ClassVar[bool] = False
    mapped: Mapping[str, str] = {}
    first_wins: str | int | None = None

    def __init__(self, rows: Sequence[Row]) -> None:
        """Create the converter of a set of rows; formats whose columns or values depend on the whole set look at it."""
        self.rows = rows

    def configure(self, columns: Mapping[str, str] | None, first_wins: str | int | None) -> None:
        """Set the options of the user; formats that need them to choose columns extend this.

        Args:
            columns: our column -> the file's; the rows have our names already.
            first_wins: the value of a verdict with which the first answer wins.

        Raises:
            UserError: 64, `first_wins` is given and the format has no verdict.
        """
        self.mapped, self.first_wins = columns or {}, first_wins
        if first_wins is not None and not self.has_verdict:
            what = f"rows of the format {self.name} have no verdict that says which of two answers wins"
            raise UserError(
                ExitCode.CONFIG, Problem(what, where="data.first_wins"), fix="remove the option, or --data.format NAME"
            )

    @classmethod
    def summarize(cls) -> str:
        """The first line of the docstring: the columns of the rows."""
        return (cls.__doc__ or "").partition("\n")[0]

    def describe(self) -> str:
        """One line for the user: what the rows are read as."""
        return f"{self.title} (format {self.name})"

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row, given by column, has this format."""
        return all(name in values for name in cls.columns)

    @abstractmethod
    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the columns of a row that this format reads to ours; a value of None leaves out an optional column.

        Raises:
            RowError: the row cannot be used.
            LeftOut: the row is valid, but teaches nothing.
        """

    def convert_rows(self, rows: Iterable[Row], bad: BadRows, notes: Notes) -> Iterator[Row]:
        """Convert rows one by one; columns that the format does not read keep their names.

        Args:
            rows: the rows of a set.
            bad: collects the errors.
            notes: counts the rows that are left out.
        """
        read = {*self.columns, *self.optional}
        theirs = {name: ours for ours, name in self.renames.items()}
        for row in rows:
            if row.add_faults(read, bad):
                continue
            try:
                check_columns(row.values, self.columns)
                converted = self.convert(row.values)
                for name in NEEDED:
                    check_not_null(converted.get(name, ""), self.renames.get(name, name))
                rest = {name: value for name, value in row.values.items() if name not in read}
                values = {name: value for name, value in converted.items() if value is not None}
                if both := values.keys() & rest.keys():
                    what = f"the column '{excerpt_name(min(both))}' is also given by the format {self.name}"
                    raise RowError(what, fix="remove one of the two")
            except RowError as error:
                bad.add(row.origin, error)
            except LeftOut as left:
                notes.add(row.origin, left.reason, fix="remove the row, or leave out --data.strict")
            else:
                recomposed = frozenset(theirs.get(name, name) for name in row.recomposed)
                yield row._replace(values={**values, **rest}, recomposed=recomposed)


def check_columns(values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check that a row has columns.

    Raises:
        RowError: it lacks one.
    """
    for name in names:
        if name not in values:
            shown = "columns: " + ", ".join(map(excerpt_name, values))
            raise RowError(f"no column '{excerpt_name(name)}'", shown, "add it to the row")


def check_not_null(value: Any, name: str) -> None:
    """Check that a value is not null.

    Raises:
        RowError: it is.
    """
    if value is None:
        raise RowError(f"'{excerpt_name(name)}' is null", fix="fill it in, or remove the row")


def read_object(value: Any, name: str, keys: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return a value that is an object with `keys`.

    Raises:
        RowError: it is not.
    """
    if not isinstance(value, dict):
        raise RowError(f"'{name}' is not an object", str(value), "write it as an object, or remove the row")
    for key in keys:
        if key not in value:
            raise RowError(f"'{name}' has no '{key}'", "keys: " + ", ".join(map(str, value)), "add it to the object")
    return value


def read_index(value: Any, name: str, count: int) -> int:
    """Return a number from 0 to `count` - 1, which may be a whole float or the text of a number.

    Raises:
        RowError: the value is something else.
    """
    try:
        number = -1 if isinstance(value, bool) or float(value) != int(float(value)) else int(float(value))
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < count:
        raise RowError(
            f"'{excerpt_name(name)}' is not a number from 0 to {count - 1}", str(value), "correct the number"
        )
    return number


def read_list(value: Any, name: str) -> list[Any]:
    """Return a value that is a list.

    Raises:
        RowError: it is not.
    """
    if not isinstance(value, list):
        raise RowError(f"'{name}' is not a list", str(value), "write it as a list, or remove the row")
    return value
