"""Records of the data path, without torch: `Example` is a prompt with answers as texts, `Encoded` as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
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
    """Its number among the rows of this line, from 1: a JSON array may be on a single line."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, (self.file, self.line, self.nth)

    def __str__(self) -> str:
        """Format as `file:line`, with the number of the row in the line from the second one on."""
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
    """A row as token ids: a prompt and its answers; each kind of row adds its fields, such as a label or a margin."""

    noun: ClassVar[str] = "rows"
    """Plural noun for these rows in messages."""

    answers_first: ClassVar[bool] = True
    """How a batch orders its sequences: first all first answers, then all second ones; False for row after row."""

    origin: Origin
    prompt_ids: Sequence[int]
    answers: tuple[EncodedAnswer, ...]
    weight: float = 1.0

    @classmethod
    def annotations(cls) -> tuple[str, ...]:
        """Names of the fields that this kind adds to those of every row."""
        return _list_encoded_annotations(cls)  # type: ignore[arg-type]

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)

    @property
    def columns(self) -> Mapping[str, float | bool]:
        """The row's values for `Batch.columns`, by name; every row of a kind must have the same names."""
        return {}


@dataclass(frozen=True, slots=True)
class Example:
    """A row as texts: a prompt and its answers; each kind of row adds its fields, such as a label or a margin.

    Either all texts are strings, or all are tuples of messages. An answer of messages ends with an assistant message,
    and may begin with the turns that led to it.
    """

    encoded: ClassVar[type[Encoded]] = Encoded
    """Class of the same row as token ids; its own fields are fields of this class too."""

    origin: Origin
    prompt: Text
    answers: tuple[Text, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""
    weight: float = 1.0
    """Factor of the row in the loss."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Rows are pickled while they are checked; what dataclasses do by themselves takes several times as long.
        names = _list_names(type(self))  # type: ignore[arg-type]
        return _restore, (type(self), names, tuple(getattr(self, name) for name in names))

    @classmethod
    def annotations(cls) -> tuple[str, ...]:
        """Names of the fields that this kind adds to those of every row."""
        return _list_annotations(cls)

    def encode(self, prompt_ids: Sequence[int], answers: tuple[EncodedAnswer, ...]) -> Encoded:
        """Return the same row as token ids, with its weight and the fields that its kind adds."""
        own = {name: getattr(self, name) for name in self.encoded.annotations()}
        return self.encoded(self.origin, prompt_ids, answers, self.weight, **own)


@cache  # each row needs them several times
def _list_names(kind: type[Example]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _list_annotations(kind: type[Example]) -> tuple[str, ...]:
    return _list_names(kind)[len(_list_names(Example)) :]  # type: ignore[arg-type]


@cache
def _list_encoded_annotations(kind: type[Encoded]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)[len(fields(Encoded)) :])


def _restore(kind: type[Example], names: tuple[str, ...], values: tuple[Any, ...]) -> Example:
    """Make an example again that was pickled."""
    return kind(**dict(zip(names, values, strict=True)))
