"""Records of the data path, usable without torch: from a row of a file to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One chat turn: `role`, `content`, and what the template needs for tools (`tool_calls`, `name`, ...)."""

TRAIN = "train"
"""False under this key of a demonstration's turn: it is context and not learned. No template is given the key."""

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
class PreferenceExample:
    """One comparison: `chosen` was preferred to `rejected` as an answer to `prompt`.

    Either all three texts are strings, or all are message tuples (`chosen` and `rejected` then end with an
    assistant message, and may begin with the turns that led to it).
    """

    origin: Origin
    prompt: Text
    chosen: Text
    rejected: Text
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""
    weight: float = 1.0
    """How much the pair counts in the loss."""
    margin: float | None = None
    """By how much the chosen answer was found better, where the row tells."""


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One demonstration: `completion` is what the model should answer to `prompt`.

    For a conversation, `prompt` holds the messages before the first assistant turn that is learned and `completion` all
    that follow; every assistant turn of it is learned but those that have `TRAIN` as False.
    """

    origin: Origin
    prompt: Text
    completion: Text
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""
    weight: float = 1.0
    """How much each token of the completion counts in the loss."""


@dataclass(frozen=True, slots=True)
class RankedExample:
    """Answers to one prompt, the best first; all texts are strings, or all are message tuples."""

    origin: Origin
    prompt: Text
    responses: tuple[Text, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""
    weight: float = 1.0
    """How much the list counts in the loss."""


@dataclass(frozen=True, slots=True)
class UnpairedExample:
    """One judgement: `completion` was found good or bad as an answer to `prompt`; texts are those of `SFTExample`."""

    origin: Origin
    prompt: Text
    completion: Text
    good: bool
    tools: tuple[Mapping[str, Any], ...] = ()
    group: str = ""
    weight: float = 1.0
    """How much the answer counts in the loss."""


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """Token ids that follow a prompt, and which of them are scored (the assistant's own, its EOS included).

    `cut` tells that the end was lost to `max_length`, and the EOS with it.
    """

    ids: Sequence[int]
    scored: Sequence[bool]
    cut: bool = False


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Both answers follow the same `prompt_ids`."""

    origin: Origin
    prompt_ids: Sequence[int]
    chosen: EncodedAnswer
    rejected: EncodedAnswer
    weight: float = 1.0
    margin: float | None = None

    @property
    def answers(self) -> tuple[EncodedAnswer, ...]:
        """Chosen and rejected."""
        return self.chosen, self.rejected

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class EncodedSFT:
    """A prompt and the completion that is learned."""

    origin: Origin
    prompt_ids: Sequence[int]
    completion: EncodedAnswer
    weight: float = 1.0

    @property
    def answers(self) -> tuple[EncodedAnswer, ...]:
        """The completion alone."""
        return (self.completion,)

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion.ids)


@dataclass(frozen=True, slots=True)
class EncodedRanking:
    """Answers that follow the same `prompt_ids`, the best first."""

    origin: Origin
    prompt_ids: Sequence[int]
    answers: tuple[EncodedAnswer, ...]
    weight: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class EncodedUnpaired:
    """A prompt and an answer that was judged; where a loss asks for it, another prompt's answer as well."""

    origin: Origin
    prompt_ids: Sequence[int]
    completion: EncodedAnswer
    good: bool
    weight: float = 1.0
    mismatched: EncodedAnswer | None = None

    @property
    def answers(self) -> tuple[EncodedAnswer, ...]:
        """The judged answer, then the mismatched one."""
        return (self.completion,) if self.mismatched is None else (self.completion, self.mismatched)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return len(self.prompt_ids) + max(len(answer.ids) for answer in self.answers)


Example: TypeAlias = PreferenceExample | SFTExample | RankedExample | UnpairedExample
Encoded: TypeAlias = EncodedPair | EncodedSFT | EncodedRanking | EncodedUnpaired
