"""One row into a demonstration, or every reason why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dpo_lightning.data.examples import TRAIN, Message, SFTExample, Text
from dpo_lightning.data.formats.context_columns import READ, ContextColumns, join_input
from dpo_lightning.data.formats.fields import check_answer, check_asked, parse_group, parse_text, parse_weight
from dpo_lightning.data.formats.preference import (
    EMPTY_PROMPT,
    JSON_TEXT,
    MESSAGES_AS_TEXT,
    REPEATS_PROMPT,
    check_not_blank,
    fit_answer,
)
from dpo_lightning.data.formats.tool_calls import parse_tools
from dpo_lightning.data.formats.turn_marks import learned_turns, read_context
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row

LAYOUTS = (("prompt", "completion"), ("messages",), ("instruction", "output"))
FORMAT = ("prompt", "completion", "messages", "instruction", "output")
USED = (*FORMAT, *READ, "context", "tools", "group", "weight")
GREETING = "conversations that the assistant begins: its first turn is context and not learned"


def layout_of(names: Collection[str]) -> tuple[str, ...]:
    """The columns that make these rows demonstrations, or nothing."""
    return next((layout for layout in LAYOUTS if all(name in names for name in layout)), ())


@dataclass(frozen=True)
class DemonstrationReader:
    """Turns rows into demonstrations.

    Attributes:
        bad: where reasons against a row go.
        notes: where oddities go.
        layout: the columns to read, one of `LAYOUTS`.
        columns: our column name -> the file's, for messages.
        context: what comes before the prompts.
    """

    bad: BadRows
    notes: Notes
    layout: tuple[str, ...]
    columns: Mapping[str, str]
    context: ContextColumns

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that this layout reads."""
        read = READ if "messages" not in self.layout else tuple(name for name in READ if name != "input")
        return (*self.layout, *read, "tools", "group", "weight", *(("context",) if "output" in self.layout else ()))

    def read(self, row: Row) -> SFTExample | None:
        """The demonstration, or None for a row whose faults are now in `bad`."""
        texts = self._texts(row)
        if texts is None:
            return None
        try:
            prompt, completion = self._split(row, texts)
            tools = parse_tools(row.values.get("tools"), row.values.get("functions"))
            group, weight = parse_group(row.values.get("group")), parse_weight(row.values, self.columns)
        except RowError as error:
            self.bad.add(row.origin, error)
            return None
        if not prompt:
            self.notes.add(row.origin, EMPTY_PROMPT, fix="write a prompt, or leave out --data.strict")
        if isinstance(completion, str) and completion.startswith(MESSAGES_AS_TEXT):
            self.notes.add(row.origin, JSON_TEXT, fix="write messages as a list, not as text")
        return SFTExample(row.origin, prompt, completion, tools, group, weight)

    def _texts(self, row: Row) -> dict[str, Text] | None:
        texts: dict[str, Text] = {}
        for name in self.layout:
            shown = f"'{self.columns.get(name, name)}'"
            try:
                if name not in row.values:
                    raise RowError(f"no column {shown}", "columns: " + ", ".join(row.values), "add it to the row")
                text = parse_text(row.values[name], shown)
                if name == self.layout[-1]:
                    check_answer(text, shown)
                else:
                    text = read_context(text, shown)
                    check_not_blank(text, shown)
                if name not in LAYOUTS[0]:
                    _check_kind(text, name, shown)
            except RowError as error:
                self.bad.add(row.origin, error)
            else:
                texts[name] = text
        return texts if len(texts) == len(self.layout) else None

    def _split(self, row: Row, texts: dict[str, Text]) -> tuple[Text, Text]:
        shown = f"'{self.columns.get(self.layout[-1], self.layout[-1])}'"
        if "messages" in texts:
            prompt, completion = self._split_conversation(row, texts["messages"], shown)
            return self.context.joined(row, prompt), completion
        asked, answer = texts[self.layout[0]], texts[self.layout[-1]]
        asked = self._with_input(row, asked) if "instruction" in texts else self.context.with_input(row, asked)
        prompt = self.context.joined(row, asked)
        if isinstance(prompt, str) and isinstance(answer, str):
            return prompt, answer
        prompt, completion = fit_answer(prompt, answer, shown)
        if not isinstance(answer, str) and len(completion) < len(answer):
            self.notes.add(row.origin, REPEATS_PROMPT, fix="take the prompt's messages out of the completion")
        check_asked(prompt, shown)
        return prompt, learned_turns(completion, shown)

    def _split_conversation(self, row: Row, text: Text, shown: str) -> tuple[Text, Text]:
        """What comes before the first assistant turn that is learned, and all that follows.

        Raises:
            RowError: nothing of it is to be learned, or nothing comes before a turn that is.
        """
        messages: tuple[Message, ...] = () if isinstance(text, str) else text
        said = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if said == [0] or messages[0].get(TRAIN):
            check_asked((), f"the assistant's first turn in {shown}")
        kept = learned_turns(messages, shown)
        first = next((i for i in said if i and kept[i].get(TRAIN, True)), 0)
        if not first:
            raise RowError(
                f"every later turn of the assistant in {shown} is marked not to be learned", fix="remove the row"
            )
        if said[0] == 0:
            self.notes.add(row.origin, GREETING, fix="write the user's turn before it, or leave out --data.strict")
        return tuple({k: v for k, v in message.items() if k != TRAIN} for message in kept[:first]), kept[first:]

    def _with_input(self, row: Row, instruction: Text) -> Text:
        """An instruction with its `input`, or with a `context` where it has none."""
        given = self.context.text(row, "input") or self.context.text(row, "context")
        return join_input(instruction, given) if given and isinstance(instruction, str) else instruction


def _check_kind(text: Text, name: str, shown: str) -> None:
    wanted = list if name == "messages" else str
    if isinstance(text, str) != (wanted is str):
        found = "text" if isinstance(text, str) else "a list"
        due = "a list of messages" if wanted is list else "text"
        raise RowError(f"{shown} is {found} where {due} is due", text if isinstance(text, str) else "", f"write {due}")
