"""SFT rows: a prompt with one completion, or a conversation whose assistant turns are learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dpo_lightning.data.examples import TRAIN, Encoded, EncodedAnswer, Example, Message, Text
from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.kinds.columns import find_look_alike
from dpo_lightning.data.kinds.context_columns import join_input
from dpo_lightning.data.kinds.fields import check_has_prompt, fit_answer
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.turn_marks import read_completion
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.sources import Row

COLUMN_SETS = (("prompt", "completion"), ("messages",), ("instruction", "output"))
"""The three layouts of SFT rows; the first one whose columns are all present is read."""

REPEATS_PROMPT = "rows whose completion begins with the prompt's messages (read once)"
GREETING = "conversations that the assistant begins: its first turn is context and not learned"


@dataclass(frozen=True, slots=True)
class EncodedSFT(Encoded):
    """An SFT row as token ids; the completion is its only answer."""

    noun: ClassVar[str] = "tokens of completions"

    @property
    def completion(self) -> EncodedAnswer:
        """The only answer, `answers[0]`, as token ids."""
        return self.answers[0]


@dataclass(frozen=True, slots=True)
class SFTExample(Example):
    """An SFT row as texts; `weight` is the weight of each token of the completion.

    Of a conversation, `prompt` has the messages before the first assistant turn that is learned, and the completion all
    that follow. Every assistant turn of the completion is learned, except those that have `TRAIN` as False.
    """

    encoded = EncodedSFT

    @property
    def completion(self) -> Text:
        """The only answer, `answers[0]`, as a string or messages."""
        return self.answers[0]


class SFTKind(RowKind):
    """`prompt, completion` (strings or messages), `messages`, or `instruction, input, output`."""

    example: ClassVar[type[Example]] = SFTExample
    reads: ClassVar[KindName | None] = "sft"
    columns = ("prompt", "completion", "messages", "instruction", "output")
    optional: ClassVar[tuple[str, ...]] = ("context",)

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """Choose the first layout whose columns are all present; otherwise return what one that is begun lacks."""
        absent = [[name for name in names if name not in present] for names in COLUMN_SETS]
        if [] not in absent:
            begun = (found for found, names in zip(absent, COLUMN_SETS, strict=True) if len(found) < len(names))
            other = ["messages"] if find_look_alike("messages", list(present)) else list(COLUMN_SETS[0])
            return next(begun, other)
        self.needed = COLUMN_SETS[absent.index([])]
        self.answers = self.needed[-1:]
        return []

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read: no `input` for conversations, and `context` only with an instruction."""
        unread = {"messages": ("input", "context"), "completion": ("context",)}.get(self.answers[0], ())
        return tuple(name for name in super().used if name not in unread)

    def parse(self, name: str, value: Any) -> Any:
        """Parse a text; `messages` must be a list, `instruction` and `output` strings."""
        text = super().parse(name, value)
        if name not in ("prompt", "completion") and isinstance(text, str) != (name != "messages"):
            found, due = ("text", "a list of messages") if isinstance(text, str) else ("a list", "text")
            excerpt = text if isinstance(text, str) else ""
            raise RowError(f"{self.quote_name(name)} is {found}, not {due}", excerpt, f"write {due}")
        return text

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Split a conversation, or put context columns into the prompt and match the completion's type to it."""
        shown, answer = self.quote_name(self.answers[0]), values[self.answers[0]]
        if "messages" in values:
            prompt, completion = self._split(row, answer, shown)
            return self.context.add_turns(row, prompt), (completion,)
        question = values[self.needed[0]]
        question = self._add_input(row, question) if "instruction" in values else self.context.add_input(row, question)
        prompt = self.context.add_turns(row, question)
        if isinstance(prompt, str) and isinstance(answer, str):
            return prompt, (answer,)
        prompt, completion = fit_answer(prompt, answer, shown)
        if not isinstance(answer, str) and len(completion) < len(answer):
            self.notes.add(row.origin, REPEATS_PROMPT, fix="remove the prompt's messages from the completion")
        return prompt, (read_completion(completion, shown),)

    def _split(self, row: Row, messages: tuple[Message, ...], shown: str) -> tuple[Text, Text]:
        """Split a conversation before the first assistant turn that is learned.

        Raises:
            RowError: no turn is learned, or there is no turn before the first one that is.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if turns == [0] or messages[0].get(TRAIN):
            check_has_prompt((), f"the assistant's first turn in {shown}")
        kept = read_completion(messages, shown)
        first = next((i for i in turns if i and kept[i].get(TRAIN, True)), 0)
        if not first:
            raise RowError(
                f"every later turn of the assistant in {shown} is marked not to be learned", fix="remove the row"
            )
        if turns[0] == 0:
            self.notes.add(row.origin, GREETING, fix="write the user's turn before it, or leave out --data.strict")
        return tuple({k: v for k, v in message.items() if k != TRAIN} for message in kept[:first]), kept[first:]

    def _add_input(self, row: Row, instruction: Text) -> Text:
        """Append `input` to an instruction, or `context` where there is no `input`."""
        given = self.context.read_text(row, "input") or self.context.read_text(row, "context")
        return join_input(instruction, given) if given and isinstance(instruction, str) else instruction
