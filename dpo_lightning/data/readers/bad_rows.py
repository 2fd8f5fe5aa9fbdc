"""The bad rows of one pass: gathered, and raised together."""

from __future__ import annotations

from dpo_lightning.data.examples import Origin
from dpo_lightning.errors import ExitCode, Problem, UserError

MAX_BAD_ROWS = 1000
"""Bad rows after which a pass gives up: a file with more of them is the wrong file."""

MAX_PLACES = 5
"""Places that one warning names; further ones are counted."""


class RowError(ValueError):
    """Why one row cannot be used. Whoever knows the row's origin adds it to `BadRows`."""

    def __init__(self, what: str, text: object = "", fix: str = "") -> None:
        """Keep the complaint, the offending text and the remedy."""
        super().__init__(what)
        self.what = what
        self.text = str(text)
        self.fix = fix


class BadRows:
    """Gathers what is wrong with rows, so that a file is mended once and not line by line."""

    def __init__(self) -> None:
        """Begin with no bad rows."""
        self._found: list[tuple[Origin, Problem]] = []
        self._files: dict[str, int] = {}
        self._last: Origin | None = None
        self._rows = 0

    def __bool__(self) -> bool:
        """Whether any row was bad."""
        return bool(self._found)

    def add(self, origin: Origin, error: RowError) -> None:
        """Note that the row at `origin` is bad; one row may have several problems.

        Raises:
            UserError: 65, when 1,000 rows were bad already.
        """
        if origin != self._last:
            if self._rows == MAX_BAD_ROWS:
                raise self._error(Problem(f"stopped after {MAX_BAD_ROWS:,} bad rows", where=str(origin)))
            self._rows += 1
            self._last = origin
        self._files.setdefault(origin.file, len(self._files))
        self._found.append((origin, Problem(error.what, str(origin), error.text, error.fix)))

    def raise_if_any(self) -> None:
        """Raise all that was gathered.

        Raises:
            UserError: 65, naming every bad row in the order of files and lines.
        """
        if self._found:
            raise self._error()

    def _error(self, *first: Problem) -> UserError:
        found = sorted(self._found, key=lambda entry: (self._files[entry[0].file], entry[0].line))
        return UserError(ExitCode.DATA, [*first, *(problem for _, problem in found)])


class Notes:
    """Gathers what is odd about rows but no error: one warning per kind, with a count and the first places.

    Under `strict` an odd row is a bad row.
    """

    def __init__(self, bad: BadRows, *, strict: bool) -> None:
        """Send odd rows to `bad` if `strict`."""
        self._bad = bad
        self._strict = strict
        self._places: dict[str, list[str]] = {}

    def add(self, origin: Origin, kind: str, *, other: Origin | None = None, fix: str = "") -> None:
        """Note that the row at `origin` is of a `kind`, together with the `other` row that makes it odd."""
        if self._strict:
            what = f"{kind}, see {other}" if other else kind
            self._bad.add(origin, RowError(what, fix=fix or "mend the row, or leave out --data.strict"))
            return
        self._places.setdefault(kind, []).append(f"{origin} = {other}" if other else str(origin))

    def lines(self) -> list[str]:
        """One line per kind."""
        return [f"{kind}: {len(places):,} ({shortened(places)})" for kind, places in self._places.items()]


def shortened(places: list[str]) -> str:
    """The first five places, and how many more there are."""
    rest = len(places) - MAX_PLACES
    return ", ".join(places[:MAX_PLACES]) + (f", and {rest:,} more" if rest > 0 else "")
