"""Columns that belong to the prompt: `system`, `history` and `input`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_lightning.data.examples import Message, Text
from dpo_lightning.data.kinds.fields import SPOKEN, parse_text
from dpo_lightning.data.kinds.turn_marks import read_context
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.invisible_characters import iterate_texts
from dpo_lightning.data.readers.sources import Row, kind_of
from dpo_lightning.data.readers.text_cleaning import decode_json, excerpt_value

SYSTEM = ("system", "system_prompt", "system_message")
"""Names of the same column: the system message."""

HISTORY, INPUT = "history", "input"
READ = (*SYSTEM, HISTORY, INPUT, "functions")
"""Columns that every format reads besides its own."""

JOINT = "\n\n"
"""Separates an instruction from its input."""

PAIRS = 'write a list of ["question", "answer"] pairs, or of messages'

AS_SYSTEM = "rows whose `system` is read as a system message"
AS_TURNS = "rows whose `history` is read as earlier turns, which are not learned"
JOINED = "rows whose `input` is joined to the prompt"
THERE = "rows whose `input` is already part of the prompt and is not joined to it"

WORDS = {
    "system": "system",
    "history": HISTORY,
    **dict.fromkeys(
        ("input", "context", "passage", "document", "article", "paragraph", "background", "knowledge", "evidence"),
        INPUT,
    ),
    **dict.fromkeys(("choices", "options", "option", "schema", "initial", "prefix", "partial", "persona"), INPUT),
    **dict.fromkeys(("문맥", "지문", "본문", "입력", "보기", "선택지", "输入", "选项", "入力", "選択肢"), INPUT),
    **dict.fromkeys(("历史", "履歴"), HISTORY),
    **dict.fromkeys(("instruction", "prompt", "question", "query", "지시", "질문"), "prompt"),
}
"""Words in the names of columns that a question may depend on -> our column for such text."""


@dataclass(frozen=True)
class ContextColumns:
    """Adds other columns to a prompt: the system message and earlier turns before it, `input` after it.

    Attributes:
        columns: our column name -> the file's, for error messages.
        chats: whether any row has a system message or earlier turns: all rows are then read as messages.
        read: how a column was read (`AS_SYSTEM`, `AS_TURNS`, `JOINED`, `THERE`) -> the number of such rows.
        examples: how a column was read -> a place and what was read there, where this is not plain.
    """

    columns: Mapping[str, str]
    chats: bool
    read: dict[str, int]
    examples: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row], columns: Mapping[str, str] | None) -> ContextColumns:
        """The context columns of a set of rows; `columns` maps our column names to the file's."""
        return cls(columns or {}, any(map(_has_turns, rows)), {})

    def add_turns(self, row: Row, prompt: Text) -> Text:
        """Put the row's system message and earlier turns before the prompt.

        Raises:
            RowError: a column has the wrong type, or the prompt is a list of messages that has such turns itself.
        """
        system, history = self._read_system(row), self._read_history(row)
        if not self.chats:
            return prompt
        turns: tuple[Message, ...] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        if history and not isinstance(prompt, str):
            what = f"the row has a {self._quote_name(HISTORY)} and a conversation"
            raise RowError(what, fix="write the earlier turns into the conversation, and remove the column")
        given = next((message for message in (*turns, *history) if message["role"] in ("system", "developer")), None)
        if system and given:
            if (given.get("content") or "").strip() != system.strip():
                name = self._quote_name(_find_system_column(row))
                what = f"{name} differs from the conversation's own {given['role']} message"
                raise RowError(what, given.get("content") or "", "keep one of the two")
            system = ""
        self.count(AS_SYSTEM, bool(system))
        self.count(AS_TURNS, bool(history))
        before: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
        return (*before, *history, *turns)

    def add_input(self, row: Row, prompt: Text) -> Text:
        """Append the row's `input` to the prompt, unless the prompt already contains it.

        Raises:
            RowError: `input` is not text, or the prompt is a list of messages that does not contain it.
        """
        given = self.read_text(row, INPUT)
        if not given:
            return prompt
        # As whole words only: the input "a" is not part of the prompt "Explain that".
        pattern = re.compile(rf"(?<!\w){re.escape(given.strip())}(?!\w)")
        if any(pattern.search(text) for text in iterate_texts(prompt)):
            self.count(THERE)
            return prompt
        if not isinstance(prompt, str):
            what = f"the row has an {self._quote_name(INPUT)} and a prompt of messages"
            raise RowError(what, given, "write its text into the message, and remove the column")
        self.count(JOINED)
        return join_input(prompt, given)

    def lines(self) -> list[str]:
        """One line for each way in which a column was read, with the number of rows."""
        first = {what: f" (first: {example})" for what, example in self.examples.items()}
        return [f"{what}: {count:,}{first.get(what, '')}" for what, count in self.read.items()]

    def count(self, what: str, happened: bool = True, *, example: str = "") -> None:
        """Count a row whose columns were read in the way that `what` describes; the line shows the first `example`."""
        if happened:
            self.read[what] = self.read.get(what, 0) + 1
        if happened and example:
            self.examples.setdefault(what, example)

    def _quote_name(self, name: str) -> str:
        return f"'{self.columns.get(name, name)}'"

    def read_text(self, row: Row, name: str) -> str:
        """The text of a column; "" where it is blank or missing.

        Raises:
            RowError: the value is not text.
        """
        value = row.values.get(name)
        if value is not None and not isinstance(value, str):
            raise RowError(f"{self._quote_name(name)} is {kind_of(value)}, not text", fix="write it as text")
        return value if value and value.strip() else ""

    def _read_system(self, row: Row) -> str:
        found = {text: name for name in SYSTEM if (text := self.read_text(row, name))}
        if len(found) > 1:
            raise RowError(
                "the columns " + " and ".join(map(self._quote_name, found.values())) + " differ", fix="keep one"
            )
        return next(iter(found), "")

    def _read_history(self, row: Row) -> tuple[Message, ...]:
        value, name = row.values.get(HISTORY), self._quote_name(HISTORY)
        if isinstance(value, str) and value.strip():
            value = decode_json(value, name, PAIRS)
        if value in (None, "", []) or isinstance(value, str):
            return ()
        if not isinstance(value, list):
            raise RowError(f"{name} is {kind_of(value)}, not a list of earlier turns", fix=PAIRS)
        turns: list[Any] = value if all(isinstance(item, dict) for item in value) else self._convert_pairs(value, name)
        earlier = read_context(parse_text(turns, name), name)
        return () if isinstance(earlier, str) else earlier

    @staticmethod
    def _convert_pairs(value: Sequence[Any], name: str) -> list[Any]:
        """Convert pairs of question and answer to messages."""
        turns: list[Any] = []
        for number, item in enumerate(value, 1):
            if not isinstance(item, list) or len(item) != len(SPOKEN):
                raise RowError(f"{name} {number} is not a pair of question and answer", excerpt_value(item), PAIRS)
            if number == 1 and item[0] in (None, ""):  # a greeting: the assistant speaks first
                turns.append({"role": "assistant", "content": item[1]})
            else:
                turns += [{"role": role, "content": text} for role, text in zip(SPOKEN, item, strict=True)]
        return turns


def join_input(instruction: str, given: str) -> str:
    """Append the text that an instruction is about; without an instruction, that text is the prompt."""
    return instruction + JOINT + given if instruction else given


def _has_turns(row: Row) -> bool:
    """Whether a row has a system message or earlier turns (`history` may be a list, or its JSON text)."""
    if any(not _is_blank(row.values.get(name)) for name in SYSTEM):
        return True
    value = row.values.get(HISTORY)
    return not _is_blank(value) and not (isinstance(value, str) and value.strip() in ("[]", "null"))


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _find_system_column(row: Row) -> str:
    return next(name for name in SYSTEM if not _is_blank(row.values.get(name)))
