"""One row into a preference pair, or every reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dpo_lightning.data.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.implicit_prompts import split_messages, split_strings
from dpo_lightning.data.messages import check_answer, parse_group, parse_number, parse_text, parse_tools
from dpo_lightning.data.sources import Row
from dpo_lightning.examples import Message, PreferenceExample, Text

USED = ("prompt", "chosen", "rejected", "tools", "group", "weight", "margin")
FORMAT = ("prompt", "chosen", "rejected")

EMPTY_PROMPT = "rows with an empty prompt"
NEARLY_EQUAL = "pairs that differ only in outer white space or Unicode form"
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
    """

    bad: BadRows
    notes: Notes
    implicit: bool
    columns: Mapping[str, str]

    def read(self, row: Row) -> PreferenceExample | None:
        """The pair, or None for a row whose faults are now in `bad`."""
        texts = self._texts(row)
        if texts is None:
            return None
        try:
            self._compare(row, texts["chosen"], texts["rejected"])
            prompt, chosen, rejected = self._split(texts) if self.implicit else self._fitted(row, texts)
            tools, group = parse_tools(row.values.get("tools")), parse_group(row.values.get("group"))
            weight, margin = self._number(row, "weight"), self._number(row, "margin")
            if weight is not None and weight < 0:
                raise RowError("'weight' is negative", str(weight), "write 0 or more; 0 leaves the pair out")
        except RowError as error:
            self.bad.add(row.origin, error)
            return None
        if not prompt:
            self.notes.add(row.origin, EMPTY_PROMPT, fix="write a prompt, or leave out --data.strict")
        if isinstance(chosen, str) and chosen.startswith(MESSAGES_AS_TEXT):
            self.notes.add(row.origin, JSON_TEXT, fix="write messages as a list, not as text")
        weight = 1.0 if weight is None else weight  # 0 is a weight
        return PreferenceExample(row.origin, prompt, chosen, rejected, tools, group, weight, margin)

    def _number(self, row: Row, name: str) -> float | None:
        """A column of numbers, where there is one."""
        return parse_number(row.values[name], f"'{self.columns.get(name, name)}'") if name in row.values else None

    def _texts(self, row: Row) -> dict[str, Text] | None:
        """All texts of the row, each checked by itself so that every fault of a row is told at once."""
        texts: dict[str, Text] = {}
        needed = FORMAT[1:] if self.implicit else FORMAT
        for name in needed:
            shown = f"'{self.columns.get(name, name)}'"
            try:
                if name not in row.values:
                    raise RowError(f"no column {shown}", "columns: " + ", ".join(row.values), "add it to the row")
                text = parse_text(row.values[name], shown)
                if name == "prompt":
                    check_not_blank(text, shown)
                else:
                    check_answer(text, shown)
            except RowError as error:
                self.bad.add(row.origin, error)
            else:
                texts[name] = text
        return texts if len(texts) == len(needed) else None

    @staticmethod
    def _split(texts: dict[str, Text]) -> tuple[Text, Text, Text]:
        chosen, rejected = texts["chosen"], texts["rejected"]
        if isinstance(chosen, str) and isinstance(rejected, str):
            return split_strings(chosen, rejected)
        if isinstance(chosen, str) or isinstance(rejected, str):
            raise _mixed(chosen)
        return split_messages(chosen, rejected)

    def _fitted(self, row: Row, texts: dict[str, Text]) -> tuple[Text, Text, Text]:
        """Prompt and answers of one kind: strings, or messages."""
        prompt, chosen, rejected = texts["prompt"], texts["chosen"], texts["rejected"]
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise _mixed(chosen)
        if isinstance(prompt, str) and isinstance(chosen, str):
            return prompt, chosen, rejected
        asked, first = fit_answer(prompt, chosen, "'chosen'")
        _, second = fit_answer(prompt, rejected, "'rejected'")
        if len(first) < len(chosen) and len(second) < len(rejected):
            self.notes.add(row.origin, REPEATS_PROMPT, fix="take the prompt's messages out of the answers")
        elif len(first) < len(chosen) or len(second) < len(rejected):
            raise RowError("only one answer begins with the prompt's messages", fix="take them out of it")
        return asked, first, second

    def _compare(self, row: Row, chosen: Text, rejected: Text) -> None:
        if chosen == rejected:
            # Equal only after NFC: a pair that teaches nothing, but no copy either.
            if len(row.recomposed & {"chosen", "rejected"}) != 1:
                names = " and ".join(f"'{self.columns.get(name, name)}'" for name in FORMAT[1:])
                text = chosen if isinstance(chosen, str) else chosen[-1].get("content") or ""
                raise RowError(f"{names} are equal", text, "remove the row: there is nothing to prefer")
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")
        elif _stripped(chosen) == _stripped(rejected):
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")


def check_not_blank(prompt: Text, name: str) -> None:
    """An empty prompt may be meant; one of white space is not.

    Raises:
        RowError: for white space only.
    """
    if isinstance(prompt, str) and prompt and not prompt.strip():
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
    if asked and len(answer) > len(asked) and answer[: len(asked)] == asked:
        return asked, answer[len(asked) :]
    if asked and answer[0]["role"] != "assistant":
        what = f"{name} begins with a {answer[0]['role']} message that is not the prompt's"
        raise RowError(what, answer[0].get("content") or "", "begin answers with the assistant, or remove the prompt")
    return asked, answer


def _mixed(chosen: Text) -> RowError:
    kinds = ("text", "messages") if isinstance(chosen, str) else ("messages", "text")
    return RowError("'chosen' is {} and 'rejected' is {}".format(*kinds), fix="write both as text or both as messages")


def _stripped(text: Text) -> object:
    if isinstance(text, str):
        return text.strip()
    return [{**message, "content": (message.get("content") or "").strip()} for message in text]
