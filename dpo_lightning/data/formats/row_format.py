"""`RowFormat`: how the rows of a file become examples of one kind; a subclass adds the columns of its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dpo_lightning.data.examples import Example, Text
from dpo_lightning.data.formats.columns import missing_columns
from dpo_lightning.data.formats.context_columns import READ, ContextColumns
from dpo_lightning.data.formats.duplicates import check_repeats
from dpo_lightning.data.formats.fields import (
    check_answer,
    check_asked,
    check_not_blank,
    parse_group,
    parse_text,
    parse_weight,
)
from dpo_lightning.data.formats.tool_calls import parse_tools
from dpo_lightning.data.formats.turn_marks import read_context
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row

COMMON = (*READ, "tools", "group", "weight")
"""Columns that every kind of row may have besides its own."""

EMPTY_PROMPT = "rows with an empty prompt"
JSON_TEXT = "answers that look like messages in JSON, read as plain text"
MESSAGES_AS_TEXT = ('[{"role"', '[{"content"', "[{'role'", "[{'content'")


class RowFormat(ABC):
    """One kind of row in a set of files: its columns, how a row is read, and what is checked over all rows.

    Attributes:
        example: the record that a row becomes.
        columns: the columns that make the format; all files of a set have the same of them.
        optional: further columns of this kind.
        needed: the columns that every row of this set has; by default `columns`.
        answers: those of `needed` that hold answers.
    """

    example: ClassVar[type[Example]]
    columns: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    needed: tuple[str, ...]
    answers: tuple[str, ...]

    def __init__(self, rows: Sequence[Row], names: Mapping[str, str], bad: BadRows, notes: Notes) -> None:
        """Look at the columns of a set.

        Args:
            rows: all rows of the set, under our names.
            names: our column name -> the file's, for messages.
            bad: where reasons against a row go.
            notes: where oddities go.

        Raises:
            UserError: 65, no row has a column that this kind needs.
        """
        self.names, self.bad, self.notes = names, bad, notes
        self.context = ContextColumns.of(rows, names)
        self.needed = self.columns
        present = {name for row in rows for name in row.values}
        missing = self.choose_columns(rows, present)
        if missing:
            raise missing_columns(missing, rows, names)

    @classmethod
    def choose(cls, present: Collection[str]) -> type[RowFormat]:
        """The format that reads a set with these columns; another one where a kind may be written in several ways."""
        return cls

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """Every column that this kind may read."""
        return (*cls.columns, *cls.optional, *COMMON)

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read in this set."""
        return (*self.needed, *self.optional, *COMMON)

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """Settle which columns this set is read by, and return those that are missing."""
        return [name for name in self.needed if name not in present]

    def read(self, row: Row) -> Iterator[Example]:
        """The examples of a row; none of a row whose faults are now in `bad`."""
        values = self._parse_all(row)
        if values is None:
            return
        try:
            prompt, answers = self.fit(row, values)
            check_asked(prompt, " and ".join(self.shown(name) for name in self.answers))
            tools = parse_tools(row.values.get("tools"), row.values.get("functions"))
            group, weight = parse_group(row.values.get("group")), parse_weight(row.values, self.names)
            said = self.said(row, values)
        except RowError as error:
            self.bad.add(row.origin, error)
            return
        if not prompt:
            self.notes.add(row.origin, EMPTY_PROMPT, fix="write a prompt, or leave out --data.strict")
        if any(isinstance(text, str) and text.startswith(MESSAGES_AS_TEXT) for text in answers):
            self.notes.add(row.origin, JSON_TEXT, fix="write messages as a list, not as text")
        yield self.example(row.origin, prompt, answers, tools, group, weight, **said)

    def parse(self, name: str, value: Any) -> Any:
        """The value of one needed column, checked by itself: by default a prompt or an answer.

        Raises:
            RowError: it cannot be used.
        """
        text = parse_text(value, self.shown(name))
        if name in self.answers:
            check_answer(text, self.shown(name))
            return text
        text = read_context(text, self.shown(name))
        check_not_blank(text, self.shown(name))
        return text

    @abstractmethod
    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Prompt and answers of a row as texts of one kind, strings or messages.

        Args:
            row: the row, for the columns besides the needed ones.
            values: what `parse` made of the needed columns.

        Raises:
            RowError: they do not fit together.
        """

    def said(self, row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the row says of its answers: the fields that its example has besides those of `Example`."""
        return {}

    @classmethod
    def check(cls, examples: Sequence[Any], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Compare rows with one another: by default, note those that are there twice."""
        check_repeats(examples, notes)

    def shown(self, name: str) -> str:
        """A column as the file has it, quoted for messages."""
        return f"'{self.names.get(name, name)}'"

    def _parse_all(self, row: Row) -> dict[str, Any] | None:
        """All needed columns, each checked by itself so that every fault of a row is reported at once."""
        values: dict[str, Any] = {}
        for name in self.needed:
            try:
                if name not in row.values:
                    raise RowError(
                        f"no column {self.shown(name)}", "columns: " + ", ".join(row.values), "add it to the row"
                    )
                values[name] = self.parse(name, row.values[name])
            except RowError as error:
                self.bad.add(row.origin, error)
        return values if len(values) == len(self.needed) else None
