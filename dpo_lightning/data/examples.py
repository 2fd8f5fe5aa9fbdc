"""Records of the data path, usable without torch: a row is a prompt with answers, first as texts, then as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One chat turn: `role`, `content`, and what the template needs for tools (`tool_calls`, `name`, ...)."""

TRAIN = "train"
"""False under this key of an SFT turn: the turn is context and not learned. Chat templates never see the key."""

Text: TypeAlias = str | tuple[Message, ...]
"""A prompt or an answer: a plain string, or chat messages."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from; printed as `file:line` in every message about it."""

    file: str
    line: int
    nth: int = 1
    """Its number among the rows of this line: an array may stand on one."""

    def __str__(self) -> str:
        """`file:line`, and which row of it from the second on."""
        return f"{self.file}:{self.line}" + (f" (row {self.nth} of the line)" if self.nth > 1 else "")


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """Token ids that follow a prompt, and which of them are scored (the assistant's own, its EOS included).

    `cut` is True where `max_length` removed the end of the answer, and the EOS with it.
    """

    ids: Sequence[int]
    scored: Sequence[bool]
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """Answers that follow the same `prompt_ids`; each kind of row adds what was said of the answers."""

    noun: ClassVar[str] = "rows"
    """What messages call several of them."""

    answers_first: ClassVar[bool] = True
    """How a batch numbers its sequences: all first answers, then all second ones; False: row after row."""

    origin: Origin
    prompt_ids: Sequence[int]
    answers: tuple[EncodedAnswer, ...]
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)

    @property
    def columns(self) -> Mapping[str, float | bool]:
        """What was said of this row, by the name under which `Batch.columns` has it; the same names in every row."""
        return {}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its answers as texts; each kind of row adds what was said of the answers.

    Either all texts are strings, or all are message tuples (answers then end with an assistant message, and may begin
    with the turns that led to it).
    """

    origin: Origin
    prompt: Text
    answers: tuple[Text, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""
    weight: float = 1.0
    """How much the row counts in the loss."""

    def encode(self, prompt_ids: Sequence[int], answers: tuple[EncodedAnswer, ...]) -> Encoded:
        """The same row as token ids."""
        return Encoded(self.origin, prompt_ids, answers, self.weight)
