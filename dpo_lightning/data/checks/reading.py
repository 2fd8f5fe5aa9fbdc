"""Reads a set of rows as `fit` does, and keeps the sound ones and the notes where `fit` would refuse the set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_lightning.data.kinds.fields import VERDICTS
from dpo_lightning.data.kinds.load import load_examples
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.sft import COLUMN_SETS, SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.readers.bad_rows import BadRows, Notes
from dpo_lightning.data.readers.sources import read_files
from dpo_lightning.errors import ExitCode, UserError

KINDS: dict[str, type[RowKind]] = {"pairs": PairKind, "ranked": RankedKind, "unpaired": UnpairedKind, "sft": SFTKind}


@dataclass
class RowSet:
    """The rows of files as read for training.

    Attributes:
        examples: the sound rows; none if reading stopped early.
        notes: the warnings about them, as `fit` prints them.
        places: the rows that a warning counts, by its kind; all of them.
        errors: why `fit` refuses the set.
    """

    examples: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    places: dict[str, list[str]] = field(default_factory=dict)
    errors: list[UserError] = field(default_factory=list)


def read_set(
    kind: type[RowKind],
    paths: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    strict: bool = False,
    columns_optional: bool = False,
    allow: Collection[str] = (),
) -> RowSet:
    """Read the rows of files; the arguments are those of `load_examples`.

    Raises:
        UserError: 64 for a wrong option, 66 for a source that does not exist.
    """
    rows = RowSet()
    collected: list[Notes] = []

    def keep(examples: Sequence[Any], notes: Notes) -> None:
        rows.examples = list(examples)
        collected.append(notes)

    options: dict[str, Any] = {"columns": columns, "strict": strict, "columns_optional": columns_optional}
    try:
        rows.examples, rows.notes = load_examples(_watch(kind, keep), paths, allow=allow, **options)
    except UserError as error:
        if error.code != ExitCode.DATA:
            raise
        rows.errors.append(error)
        rows.notes = [line for notes in collected for line in notes.format_lines()]
    rows.places = {what: places for notes in collected for what, places in notes.places.items()}
    return rows


def _watch(kind: type[RowKind], keep: Any) -> Any:
    """Return the kind with a comparison of rows that first keeps the rows and the notes."""

    def choose(cls: Any, present: Collection[str]) -> Any:
        chosen = kind.choose(present)
        return cls if chosen is kind else _watch(chosen, keep)

    def check(cls: Any, examples: Sequence[Any], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        keep(examples, notes)
        kind.check(examples, allow, bad, notes)

    return type(kind.__name__, (kind,), {"choose": classmethod(choose), "check": classmethod(check)})


def recognize_kind(paths: Sequence[str], columns: Mapping[str, str] | None) -> str:
    """Return the name of the kind of rows by the columns of the first row; SFT where nothing names another.

    Raises:
        UserError: as in `read_files`.
    """
    first = next(read_files(paths, BadRows()), None)
    ours = {theirs: name for name, theirs in (columns or {}).items()}
    names = {} if first is None else {ours.get(name, name): value for name, value in first.values.items()}
    if "chosen" in names:
        return "pairs"
    if "responses" in names:
        return "ranked"
    return "unpaired" if "label" in names and _is_verdict(names) else "sft"


def _is_verdict(values: Mapping[str, Any]) -> bool:
    """Whether the label of a row judges its answer, rather than name a category of an SFT row."""
    label = values["label"]
    named = isinstance(label, str) and label.strip().lower().removeprefix("+").removesuffix(".0") not in VERDICTS
    return not named and not any(set(names) <= values.keys() for names in COLUMN_SETS[1:])
