"""One row into a demonstration, or every reason why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dpo_lightning.data.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.messages import check_answer, parse_group, parse_text, parse_tools
from dpo_lightning.data.preference_rows import (
    EMPTY_PROMPT,
    JSON_TEXT,
    MESSAGES_AS_TEXT,
    REPEATS_PROMPT,
    check_not_blank,
    fit_answer,
)
from dpo_lightning.data.sources import Row, kind_of
from dpo_lightning.examples import SFTExample, Text

LAYOUTS = (("prompt", "completion"), ("messages",), ("instruction", "output"))
FORMAT = ("prompt", "completion", "messages", "instruction", "output")
USED = (*FORMAT, "input", "tools", "group")
JOINT = "\n\n"
"""Between an instruction and its input."""


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
    """

    bad: BadRows
    notes: Notes
    layout: tuple[str, ...]
    columns: Mapping[str, str]

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that this layout reads."""
        return (*self.layout, "tools", "group", *(("input",) if "instruction" in self.layout else ()))

    def read(self, row: Row) -> SFTExample | None:
        """The demonstration, or None for a row whose faults are now in `bad`."""
        texts = self._texts(row)
        if texts is None:
            return None
        try:
            prompt, completion = self._split(row, texts)
            tools, group = parse_tools(row.values.get("tools")), parse_group(row.values.get("group"))
        except RowError as error:
            self.bad.add(row.origin, error)
            return None
        if not prompt:
            self.notes.add(row.origin, EMPTY_PROMPT, fix="write a prompt, or leave out --data.strict")
        if isinstance(completion, str) and completion.startswith(MESSAGES_AS_TEXT):
            self.notes.add(row.origin, JSON_TEXT, fix="write messages as a list, not as text")
        return SFTExample(row.origin, prompt, completion, tools, group)

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
                    check_not_blank(text, shown)
                if name not in LAYOUTS[0]:
                    _check_kind(text, name, shown)
            except RowError as error:
                self.bad.add(row.origin, error)
            else:
                texts[name] = text
        return texts if len(texts) == len(self.layout) else None

    def _split(self, row: Row, texts: dict[str, Text]) -> tuple[Text, Text]:
        if "messages" in texts:
            return _split_conversation(texts["messages"])
        if "instruction" in texts:
            return _with_input(texts["instruction"], row.values.get("input")), texts["output"]
        prompt, completion = texts["prompt"], texts["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return prompt, completion
        asked, answer = fit_answer(prompt, completion, "'completion'")
        if len(answer) < len(completion) and not isinstance(completion, str):
            self.notes.add(row.origin, REPEATS_PROMPT, fix="take the prompt's messages out of the completion")
        return asked, answer


def _check_kind(text: Text, name: str, shown: str) -> None:
    wanted = list if name == "messages" else str
    if isinstance(text, str) != (wanted is str):
        found = "text" if isinstance(text, str) else "a list"
        due = "a list of messages" if wanted is list else "text"
        raise RowError(f"{shown} is {found} where {due} is due", text if isinstance(text, str) else "", f"write {due}")


def _split_conversation(messages: Text) -> tuple[Text, Text]:
    """What comes before the first assistant turn, and all that follows."""
    first = next(
        i for i, message in enumerate(messages) if isinstance(message, Mapping) and message["role"] == "assistant"
    )
    return messages[:first], messages[first:]


def _with_input(instruction: Text, given: object) -> Text:
    if given is None or given == "":
        return instruction
    if not isinstance(given, str):
        raise RowError(f"'input' is {kind_of(given)} where text is due", fix="write it as text, or remove it")
    if not given.strip() or not isinstance(instruction, str):
        return instruction
    return instruction + JOINT + given if instruction else given
