"""Errors and warnings about single rows: collected while data is read, and reported together."""

from __future__ import annotations

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.left_out import MAX_PLACES, LeftOutRow, check_share, format_places
from dpo_lightning.errors import ExitCode, Problem, UserError, excerpt

MAX_BAD_ROWS = 1000
"""Bad rows after which reading stops: a file with more of them is probably not in the expected format."""

LEAVE_OUT = "leave such rows out, counted and listed: --data.bad_rows drop"
"""A remedy for bad rows where most rows are sound."""


class RowError(ValueError):
    """Why one row cannot be used, without its file and line: the caller that knows them passes both to `BadRows.add`.

    Attributes:
        what: what is wrong, in lower case and without a full stop.
        text: the offending text, or empty.
        fix: how to correct the row, or empty.
    """

    def __init__(self, what: str, text: object = "", fix: str = "") -> None:
        """Store the description, the offending text and the remedy."""
        super().__init__(what)
        self.what = what
        self.text = str(text)
        self.fix = fix


class BadRows:
    """Collects the errors of all rows, so that one error lists every row that has to be corrected.

    Attributes:
        drops: whether bad rows are left out in place of an error.
        total: the number of all rows of the set, sound and bad; 0 until they are read.
    """

    def __init__(self, *, most: int | None = MAX_BAD_ROWS, drops: bool = False) -> None:
        """Create an empty collection.

        Args:
            most: the number of bad rows after which reading stops; None reads all.
            drops: leave bad rows out, all of which are read.
        """
        self._most = None if drops else most
        self.drops = drops
        self.total = 0
        self._refused: list[tuple[Origin, Problem]] = []
        self._found: list[tuple[Origin, Problem]] = []
        # Files by the order in which their first bad row was added: errors are sorted by it.
        self._files: dict[str, int] = {}
        self._last: Origin | None = None
        self._rows = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, origin: Origin, error: RowError) -> None:
        """Add an error of the row at `origin`; consecutive errors of the same row count as one bad row.

        Raises:
            UserError: 65 with all errors so far, if `most` other rows are bad already.
        """
        if origin != self._last:
            if self._rows == self._most:
                raise self._error(Problem(f"stopped after {self._most:,} bad rows", where=str(origin)))
            self._rows += 1
            self._last = origin
        self._files.setdefault(origin.file, len(self._files))
        self._found.append((origin, Problem(error.what, str(origin), error.text, error.fix)))

    def refuse(self, origin: Origin, error: RowError) -> None:
        """Add an error that concerns more than the row at `origin`: it is one too where bad rows are left out.

        These are contradictions between rows, columns that nothing reads, and files that cannot be read to their end.

        Raises:
            UserError: as in `add`.
        """
        self.add(origin, error)
        self._refused.append(self._found[-1])

    @property
    def origins(self) -> set[Origin]:
        """The bad rows."""
        return {origin for origin, _ in self._found}

    @property
    def found(self) -> list[tuple[Origin, Problem]]:
        """The errors in the order in which they were added, each with its row."""
        return list(self._found)

    def raise_if_any(self) -> None:
        """Raise one error for all bad rows; does nothing if there are none.

        Raises:
            UserError: 65, with a problem for each error, sorted by file and line.
        """
        if self._found:
            raise self._error()

    def leave_out(self) -> list[LeftOutRow]:
        """Return the bad rows where they are left out; raise as `raise_if_any` where they are errors.

        Raises:
            UserError: 65, the set is refused, or hardly a row is sound.
        """
        if not self.drops and self._found:
            known = any("bad_rows" in problem.fix for _, problem in self._found)
            helps = not self._refused and not known and 2 * len(self.origins) <= self.total
            raise self._error(fix=LEAVE_OUT if helps else "")
        if self._refused:
            raise UserError(ExitCode.DATA, [problem for _, problem in self._refused])
        rows: dict[Origin, LeftOutRow] = {}
        for origin, problem in self._sort():
            row = rows.setdefault(origin, LeftOutRow(origin.file, origin.line, origin.nth, [], excerpt(problem.text)))
            if problem.what not in row.reasons:  # rows may be encoded twice
                row.reasons.append(problem.what)
        check_share(len(rows), self.total - len(rows), (problem for _, problem in self._sort()))
        return list(rows.values())

    def _sort(self) -> list[tuple[Origin, Problem]]:
        return sorted(self._found, key=lambda entry: (self._files[entry[0].file], entry[0].line))

    def _error(self, *first: Problem, fix: str = "") -> UserError:
        return UserError(ExitCode.DATA, [*first, *(problem for _, problem in self._sort())], fix)


class Notes:
    """Collects rows that are unusual but valid: one warning for each kind, with a count and the first rows.

    With `strict` such a row is a bad row instead.

    Attributes:
        places: kind of warning -> its rows as printed, in the order in which the kinds were added first.
        counts: kind of warning -> the number of its rows.
    """

    def __init__(self, bad: BadRows, *, strict: bool, most: int | None = MAX_PLACES) -> None:
        """Create an empty collection.

        Args:
            bad: the collection that receives the rows if `strict`.
            strict: whether unusual rows are errors.
            most: rows of each kind that are kept in `places`; None keeps all.
        """
        self._bad = bad
        self._strict = strict
        self._most = most
        self.places: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, origin: Origin, kind: str, *, other: Origin | None = None, fix: str = "") -> None:
        """Add the row at `origin`.

        Args:
            origin: the row.
            kind: what is unusual, the same text for all rows of one warning.
            other: a second row that is involved, such as the first of two duplicates.
            fix: the remedy that is printed if the row is an error; a general one where it is empty.
        """
        if self._strict:
            what = f"{kind}, see {other}" if other else kind
            self._bad.add(origin, RowError(what, fix=fix or "correct the row, or leave out --data.strict"))
            return
        places = self.places.setdefault(kind, [])
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self._most is None or len(places) < self._most:
            places.append(f"{origin} = {other}" if other else str(origin))

    def format_lines(self) -> list[str]:
        """Format one line for each kind, in the order in which the kinds were added first."""
        counted = ((kind, places, self.counts[kind]) for kind, places in self.places.items())
        return [f"{kind}: {count:,} ({format_places(places, count)})" for kind, places, count in counted]
