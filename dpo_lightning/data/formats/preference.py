"""One row into a preference pair, or every reason why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dpo_lightning.data.examples import Message, PreferenceExample, Text
from dpo_lightning.data.formats.context_columns import READ, ContextColumns
from dpo_lightning.data.formats.fields import (
    check_answer,
    check_asked,
    parse_group,
    parse_number,
    parse_text,
    parse_weight,
)
from dpo_lightning.data.formats.implicit_prompts import split_messages, split_strings
from dpo_lightning.data.formats.tool_calls import parse_tools
from dpo_lightning.data.formats.turn_marks import check_scored, read_context, unmarked
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.invisible_characters import visible
from dpo_lightning.data.readers.sources import Row

USED = ("prompt", "chosen", "rejected", *READ, "tools", "group", "weight", "margin")
FORMAT = ("prompt", "chosen", "rejected")

EMPTY_PROMPT = "rows with an empty prompt"
NEARLY_EQUAL = "pairs that differ only in outer white space or Unicode form"
INVISIBLY_EQUAL = "pairs that differ only in invisible characters"
REPEATS_PROMPT = "pairs whose answers begin with the prompt's messages (read once)"
JSON_TEXT = "answers that look like messages in JSON, read as plain text"
MESSAGES_AS_TEXT = ('[{"role"', '[{"content"', "[{'role'", "[{'content'")


@dataclass(frozen=True)
class PairReader:
    """Turns rows into pairs.

    Attributes:
        bad: where reasons against a row go.
        notes: where oddities go.
        implicit: whether the prompt is what both answers begin with.
        columns: our column name -> the file's, for messages.
        context: what comes before the prompts.
    """

    bad: BadRows
    notes: Notes
    implicit: bool
    columns: Mapping[str, str]
    context: ContextColumns

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read; a prompt that is none of them has no input."""
        return tuple(name for name in USED if not (self.implicit and name in ("prompt", "input")))

    def read(self, row: Row) -> PreferenceExample | None:
        """The pair, or None for a row whose faults are now in `bad`."""
        texts = self._texts(row)
        if texts is None:
            return None
        try:
            marked = {name: texts[name] for name in FORMAT[1:]}
            texts |= {name: unmarked(text) for name, text in marked.items()}
            self._compare(row, texts["chosen"], texts["rejected"])
            prompt, chosen, rejected = self._split(row, texts) if self.implicit else self._fitted(row, texts)
            for name, answer in (("chosen", chosen), ("rejected", rejected)):
                check_scored(marked[name], len(answer), self._shown(name))
            check_asked(prompt, " and ".join(map(self._shown, FORMAT[1:])))
            tools = parse_tools(row.values.get("tools"), row.values.get("functions"))
            group, weight = parse_group(row.values.get("group")), parse_weight(row.values, self.columns)
            margin = parse_number(row.values["margin"], self._shown("margin")) if "margin" in row.values else None
        except RowError as error:
            self.bad.add(row.origin, error)
            return None
        if not prompt:
            self.notes.add(row.origin, EMPTY_PROMPT, fix="write a prompt, or leave out --data.strict")
        if isinstance(chosen, str) and chosen.startswith(MESSAGES_AS_TEXT):
            self.notes.add(row.origin, JSON_TEXT, fix="write messages as a list, not as text")
        return PreferenceExample(row.origin, prompt, chosen, rejected, tools, group, weight, margin)

    def _shown(self, name: str) -> str:
        """A column as the file has it."""
        return f"'{self.columns.get(name, name)}'"

    def _texts(self, row: Row) -> dict[str, Text] | None:
        """All texts of the row, each checked by itself so that every fault of a row is told at once."""
        texts: dict[str, Text] = {}
        needed = FORMAT[1:] if self.implicit else FORMAT
        for name in needed:
            shown = self._shown(name)
            try:
                if name not in row.values:
                    raise RowError(f"no column {shown}", "columns: " + ", ".join(row.values), "add it to the row")
                text = parse_text(row.values[name], shown)
                if name == "prompt":
                    text = read_context(text, shown)
                    check_not_blank(text, shown)
                else:
                    check_answer(text, shown)
            except RowError as error:
                self.bad.add(row.origin, error)
            else:
                texts[name] = text
        return texts if len(texts) == len(needed) else None

    def _split(self, row: Row, texts: dict[str, Text]) -> tuple[Text, Text, Text]:
        chosen, rejected = texts["chosen"], texts["rejected"]
        prompt: Text
        if isinstance(chosen, str) and isinstance(rejected, str):
            prompt, chosen, rejected = split_strings(chosen, rejected)
        elif isinstance(chosen, str) or isinstance(rejected, str):
            raise _mixed(chosen)
        else:
            prompt, chosen, rejected = split_messages(chosen, rejected)
        prompt = self.context.joined(row, prompt)
        if isinstance(prompt, str) or not isinstance(chosen, str):
            return prompt, chosen, rejected
        return prompt, fit_answer(prompt, chosen, "'chosen'")[1], fit_answer(prompt, rejected, "'rejected'")[1]

    def _fitted(self, row: Row, texts: dict[str, Text]) -> tuple[Text, Text, Text]:
        """Prompt and answers of one kind: strings, or messages."""
        prompt, chosen, rejected = texts["prompt"], texts["chosen"], texts["rejected"]
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise _mixed(chosen)
        prompt = self.context.joined(row, self.context.with_input(row, prompt))
        if isinstance(prompt, str) and isinstance(chosen, str):
            return prompt, chosen, rejected
        asked, first = fit_answer(prompt, chosen, "'chosen'")
        _, second = fit_answer(prompt, rejected, "'rejected'")
        if isinstance(chosen, str):
            return asked, first, second
        if len(first) < len(chosen) and len(second) < len(rejected):
            self.notes.add(row.origin, REPEATS_PROMPT, fix="take the prompt's messages out of the answers")
        elif len(first) < len(chosen) or len(second) < len(rejected):
            raise RowError("only one answer begins with the prompt's messages", fix="take them out of it")
        return asked, first, second

    def _compare(self, row: Row, chosen: Text, rejected: Text) -> None:
        if chosen == rejected:
            # Equal only after NFC: a pair that teaches nothing, but no copy either.
            if len(row.recomposed & {"chosen", "rejected"}) != 1:
                names = " and ".join(map(self._shown, FORMAT[1:]))
                text = chosen if isinstance(chosen, str) else chosen[-1].get("content") or ""
                raise RowError(f"{names} are equal", text, "remove the row: there is nothing to prefer")
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")
        elif _stripped(chosen, str.strip) == _stripped(rejected, str.strip):
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")
        elif look_alike_texts(chosen, rejected):
            self.notes.add(row.origin, INVISIBLY_EQUAL, fix="remove the row")


def look_alike_texts(one: Text, other: Text) -> bool:
    """Whether texts differ in nothing that can be seen, outer white space left aside."""
    return _stripped(one) == _stripped(other)


def check_not_blank(prompt: Text, name: str) -> None:
    """An empty prompt may be meant; one of white space is not.

    Raises:
        RowError: for white space only.
    """
    if isinstance(prompt, str) and prompt and not visible(prompt).strip():
        raise RowError(f"{name} is only white space", prompt, "write a prompt, or make it empty")


def fit_answer(prompt: Text, answer: Text, name: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Prompt and answer as messages, one of which are; a repeated prompt is taken off the answer.

    Raises:
        RowError: for an answer that begins with turns of its own.
    """
    user: tuple[Message, ...] = ({"role": "user", "content": str(prompt)},) if prompt else ()
    asked = user if isinstance(prompt, str) else prompt
    if isinstance(answer, str):
        return asked, ({"role": "assistant", "content": answer},)
    spoken = tuple(message for message in asked if message["role"] not in ("system", "developer"))
    for turns in (asked, spoken):
        if turns and len(answer) > len(turns) and unmarked(answer[: len(turns)]) == turns:
            return asked, answer[len(turns) :]
    if asked and answer[0]["role"] != "assistant":
        what = f"{name} begins with a {answer[0]['role']} message that is not the prompt's"
        raise RowError(what, answer[0].get("content") or "", "begin answers with the assistant, or remove the prompt")
    return asked, answer


def _mixed(chosen: Text) -> RowError:
    kinds = ("text", "messages") if isinstance(chosen, str) else ("messages", "text")
    return RowError("'chosen' is {} and 'rejected' is {}".format(*kinds), fix="write both as text or both as messages")


def _stripped(text: Text, strip: Callable[[str], str] = lambda text: visible(text).strip()) -> object:
    if isinstance(text, str):
        return strip(text)
    return [{**message, "content": strip(message.get("content") or "")} for message in text]
