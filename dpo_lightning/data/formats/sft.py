"""SFT rows: one answer to a prompt, or a conversation, that the model learns to write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dpo_lightning.data.examples import TRAIN, Encoded, EncodedAnswer, Example, Message, Text
from dpo_lightning.data.formats.columns import look_alike, refuse_unpaired
from dpo_lightning.data.formats.context_columns import join_input
from dpo_lightning.data.formats.fields import VERDICTS, check_asked, fit_answer
from dpo_lightning.data.formats.row_format import RowFormat
from dpo_lightning.data.formats.turn_marks import learned_turns
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.sources import Row

COLUMN_SETS = (("prompt", "completion"), ("messages",), ("instruction", "output"))
REPEATS_PROMPT = "rows whose completion begins with the prompt's messages (read once)"
GREETING = "conversations that the assistant begins: its first turn is context and not learned"


@dataclass(frozen=True, slots=True)
class EncodedSFT(Encoded):
    """The completion alone."""

    noun: ClassVar[str] = "tokens of completions"

    @property
    def completion(self) -> EncodedAnswer:
        """The only answer."""
        return self.answers[0]


@dataclass(frozen=True, slots=True)
class SFTExample(Example):
    """One answer that is learned; `weight` is that of each of its tokens.

    For a conversation, `prompt` holds the messages before the first assistant turn that is learned and the completion
    all that follow; every assistant turn of it is learned but those that have `TRAIN` as False.
    """

    @property
    def completion(self) -> Text:
        """The only answer."""
        return self.answers[0]

    def encode(self, prompt_ids: Sequence[int], answers: tuple[EncodedAnswer, ...]) -> EncodedSFT:
        """The row as token ids."""
        return EncodedSFT(self.origin, prompt_ids, answers, self.weight)


class SFTFormat(RowFormat):
    """`prompt, completion` (strings or messages), `messages`, or `instruction, input, output`."""

    example: ClassVar[type[Example]] = SFTExample
    columns = ("prompt", "completion", "messages", "instruction", "output")
    optional: ClassVar[tuple[str, ...]] = ("context",)

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """Read the first set of columns that is there; else name what is missing from the nearest one."""
        refuse_unpaired(rows, present, VERDICTS)
        absent = [[name for name in names if name not in present] for names in COLUMN_SETS]
        if [] not in absent:
            begun = (found for found, names in zip(absent, COLUMN_SETS, strict=True) if len(found) < len(names))
            other = ["messages"] if look_alike("messages", list(present)) else list(COLUMN_SETS[0])
            return next(begun, other)
        self.needed = COLUMN_SETS[absent.index([])]
        self.answers = self.needed[-1:]
        return []

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read: a conversation has no `input`, and `context` goes with an instruction alone."""
        unread = {"messages": ("input", "context"), "completion": ("context",)}.get(self.answers[0], ())
        return tuple(name for name in super().used if name not in unread)

    def parse(self, name: str, value: Any) -> Any:
        """A prompt or an answer; a conversation is a list, an instruction and its output are text."""
        text = super().parse(name, value)
        if name not in ("prompt", "completion") and isinstance(text, str) != (name != "messages"):
            found, due = ("text", "a list of messages") if isinstance(text, str) else ("a list", "text")
            excerpt = text if isinstance(text, str) else ""
            raise RowError(f"{self.shown(name)} is {found} where {due} is due", excerpt, f"write {due}")
        return text

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Prompt and completion."""
        shown, answer = self.shown(self.answers[0]), values[self.answers[0]]
        if "messages" in values:
            prompt, completion = self._split(row, answer, shown)
            return self.context.joined(row, prompt), (completion,)
        asked = values[self.needed[0]]
        asked = self._with_input(row, asked) if "instruction" in values else self.context.with_input(row, asked)
        prompt = self.context.joined(row, asked)
        if isinstance(prompt, str) and isinstance(answer, str):
            return prompt, (answer,)
        prompt, completion = fit_answer(prompt, answer, shown)
        if not isinstance(answer, str) and len(completion) < len(answer):
            self.notes.add(row.origin, REPEATS_PROMPT, fix="take the prompt's messages out of the completion")
        return prompt, (learned_turns(completion, shown),)

    def _split(self, row: Row, messages: tuple[Message, ...], shown: str) -> tuple[Text, Text]:
        """What comes before the first assistant turn that is learned, and all that follows.

        Raises:
            RowError: nothing of it is to be learned, or nothing comes before a turn that is.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if turns == [0] or messages[0].get(TRAIN):
            check_asked((), f"the assistant's first turn in {shown}")
        kept = learned_turns(messages, shown)
        first = next((i for i in turns if i and kept[i].get(TRAIN, True)), 0)
        if not first:
            raise RowError(
                f"every later turn of the assistant in {shown} is marked not to be learned", fix="remove the row"
            )
        if turns[0] == 0:
            self.notes.add(row.origin, GREETING, fix="write the user's turn before it, or leave out --data.strict")
        return tuple({k: v for k, v in message.items() if k != TRAIN} for message in kept[:first]), kept[first:]

    def _with_input(self, row: Row, instruction: Text) -> Text:
        """An instruction with its `input`, or with a `context` where it has none."""
        given = self.context.text(row, "input") or self.context.text(row, "context")
        return join_input(instruction, given) if given and isinstance(instruction, str) else instruction
