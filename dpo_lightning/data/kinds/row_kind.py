"""`RowKind`, the base of all kinds of rows: parses and checks rows, and turns them into examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dpo_lightning.data.examples import Example, Text
from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.formats.turns import is_messages_text, unwrap_answer
from dpo_lightning.data.kinds.columns import missing_columns
from dpo_lightning.data.kinds.context_columns import READ, ContextColumns
from dpo_lightning.data.kinds.duplicates import check_repeats
from dpo_lightning.data.kinds.fields import (
    check_answer,
    check_has_prompt,
    check_not_blank,
    parse_group,
    parse_text,
    parse_weight,
)
from dpo_lightning.data.kinds.tool_calls import parse_tools
from dpo_lightning.data.kinds.turn_marks import read_context
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row

COMMON = (*READ, "tools", "group", "weight")
"""Columns that every kind of row may have besides its own."""

EMPTY_PROMPT = "rows with an empty prompt"
JSON_TEXT = "answers that look like messages in JSON, read as plain text"
MESSAGES_AS_TEXT = ('[{"role"', '[{"content"', "[{'role'", "[{'content'")


class RowKind(ABC):
    """Reads the rows of one set of files as examples of one kind; subclasses define columns, parsing and checks.

    Attributes:
        example: the class of the examples.
        reads: the kind under which formats of other tools are recognized; None reads this package's columns only.
        columns: the columns that define the kind; every file of a set must have the same subset of them.
        optional: further columns of this kind.
        needed: the columns that every row of this set must have; by default `columns`.
        answers: the columns among `needed` that contain answers.
    """

    example: ClassVar[type[Example]]
    reads: ClassVar[KindName | None] = None
    columns: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    needed: tuple[str, ...]
    answers: tuple[str, ...]

    def __init__(self, rows: Sequence[Row], names: Mapping[str, str], bad: BadRows, notes: Notes) -> None:
        """Choose the columns that this set is read from.

        Args:
            rows: all rows of the set, with columns renamed to ours.
            names: our column name -> the file's, for error messages.
            bad: collects the errors.
            notes: collects the warnings.

        Raises:
            UserError: 65, no row has a column that is needed.
        """
        self.names, self.bad, self.notes = names, bad, notes
        self.context = ContextColumns.of(rows, names)
        self.needed = self.columns
        present: set[str] = set()
        for row in rows:
            present.update(row.values)
        missing = self.choose_columns(rows, present)
        if missing:
            raise missing_columns(missing, rows, names)
        # An answer that is a list of messages in JSON may be the text that was meant; a column of them never is.
        self.decoded = {
            *(name for name in self.answers if all(is_messages_text(row.values.get(name)) for row in rows)),
            *(name for name in self.needed if name not in self.answers),
        }

    @classmethod
    def choose(cls, present: Collection[str]) -> type[RowKind]:
        """The kind for a set with these columns; one with several layouts may return another subclass."""
        return cls

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """Every column that this kind can read."""
        return (*cls.columns, *cls.optional, *COMMON)

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read in this set."""
        return (*self.needed, *self.optional, *COMMON)

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """Set `needed` and `answers` by the columns that are present, and return those that are missing."""
        return [name for name in self.needed if name not in present]

    def read(self, row: Row) -> Iterator[Example]:
        """Turn a row into its examples; for a bad row, add its errors to `bad` and yield nothing."""
        values = self._parse_all(row)
        if values is None:
            return
        try:
            prompt, answers = self.fit(row, values)
            check_has_prompt(prompt, " and ".join(self.quote_name(name) for name in self.answers))
            tools = parse_tools(row.values.get("tools"), row.values.get("functions"))
            group, weight = parse_group(row.values.get("group")), parse_weight(row.values, self.names)
            annotations = self.parse_annotations(row, values)
        except RowError as error:
            self.bad.add(row.origin, error)
            return
        if not prompt:
            self.notes.add(row.origin, EMPTY_PROMPT, fix="write a prompt, or leave out --data.strict")
        if any(isinstance(text, str) and text.startswith(MESSAGES_AS_TEXT) for text in answers):
            self.notes.add(row.origin, JSON_TEXT, fix="write messages as a list, not as text")
        yield self.example(row.origin, prompt, answers, tools, group, weight, **annotations)

    def parse(self, name: str, value: Any) -> Any:
        """Parse and check the value of one needed column: by default a prompt or an answer.

        A column that is a field of the kind's example, such as a label, is returned unchanged: its kind checks it here.

        Raises:
            RowError: the value is invalid.
        """
        if name in self.example.annotations():
            return value
        if name in self.answers:
            value = unwrap_answer(value)
        text = parse_text(value, self.quote_name(name), decode=name in self.decoded)
        if isinstance(value, str) and not isinstance(text, str):
            self.context.count(f"values of {self.quote_name(name)} that are messages in JSON text")
        if name in self.answers:
            check_answer(text, self.quote_name(name))
            return text
        text = read_context(text, self.quote_name(name))
        check_not_blank(text, self.quote_name(name))
        return text

    @abstractmethod
    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Combine the columns of a row into a prompt and answers, all strings or all messages.

        Args:
            row: the row, for columns that are not in `needed`.
            values: the parsed values of the needed columns.

        Raises:
            RowError: the values do not fit together.
        """

    def parse_annotations(self, row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that the example adds to those of `Example`: by default, columns of their names."""
        return {name: values[name] for name in self.example.annotations() if name in values}

    @classmethod
    def check(cls, examples: Sequence[Any], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Compare rows with one another: by default, note repeated ones."""
        check_repeats(examples, notes)

    def quote_name(self, name: str) -> str:
        """The file's name of our column, in quotes, for error messages."""
        return f"'{self.names.get(name, name)}'"

    def _parse_all(self, row: Row) -> dict[str, Any] | None:
        """Parse all needed columns; each is checked by itself, so that all errors of a row are reported together."""
        values: dict[str, Any] = {}
        for name in self.needed:
            try:
                if name not in row.values:
                    raise RowError(
                        f"no column {self.quote_name(name)}", "columns: " + ", ".join(row.values), "add it to the row"
                    )
                values[name] = self.parse(name, row.values[name])
            except RowError as error:
                self.bad.add(row.origin, error)
        return values if len(values) == len(self.needed) else None
