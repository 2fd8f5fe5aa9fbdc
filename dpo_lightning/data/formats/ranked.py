"""One row into a ranked list, or every reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_lightning.data.examples import RankedExample, Text
from dpo_lightning.data.formats.context_columns import READ, ContextColumns
from dpo_lightning.data.formats.fields import (
    check_answer,
    check_asked,
    parse_group,
    parse_number,
    parse_text,
    parse_weight,
)
from dpo_lightning.data.formats.preference import (
    EMPTY_PROMPT,
    JSON_TEXT,
    MESSAGES_AS_TEXT,
    check_not_blank,
    fit_answer,
    look_alike_texts,
)
from dpo_lightning.data.formats.tool_calls import parse_tools
from dpo_lightning.data.formats.turn_marks import check_scored, read_context, unmarked
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row, kind_of

USED = ("prompt", "responses", "scores", *READ, "tools", "group", "weight")
FORMAT = ("prompt", "responses")

LEAST = 2
NEARLY_EQUAL = "lists with answers that differ only in outer white space"
INVISIBLY_EQUAL = "lists with answers that differ only in invisible characters"


@dataclass(frozen=True)
class RankingReader:
    """Turns rows into ranked lists.

    Attributes:
        bad: where reasons against a row go.
        notes: where oddities go.
        columns: our column name -> the file's, for messages.
        context: what comes before the prompts.
    """

    bad: BadRows
    notes: Notes
    columns: Mapping[str, str]
    context: ContextColumns

    def read(self, row: Row) -> RankedExample | None:
        """The list, or None for a row whose faults are now in `bad`."""
        missing = [name for name in FORMAT if name not in row.values]
        for name in missing:
            what = f"no column {self._shown(name)}"
            self.bad.add(row.origin, RowError(what, "columns: " + ", ".join(row.values), "add it to the row"))
        if missing:
            return None
        try:
            prompt = read_context(parse_text(row.values["prompt"], self._shown("prompt")), self._shown("prompt"))
            check_not_blank(prompt, self._shown("prompt"))
            prompt = self.context.joined(row, self.context.with_input(row, prompt))
            prompt, responses = self._fitted(prompt, self._responses(row.values["responses"]))
            if row.values.get("scores") is not None:
                responses = self._sorted(responses, row.values["scores"])
            self._compare(row, responses)
            check_asked(prompt, self._shown("responses"))
            tools = parse_tools(row.values.get("tools"), row.values.get("functions"))
            group, weight = parse_group(row.values.get("group")), parse_weight(row.values, self.columns)
        except RowError as error:
            self.bad.add(row.origin, error)
            return None
        if not prompt:
            self.notes.add(row.origin, EMPTY_PROMPT, fix="write a prompt, or leave out --data.strict")
        if any(isinstance(text, str) and text.startswith(MESSAGES_AS_TEXT) for text in responses):
            self.notes.add(row.origin, JSON_TEXT, fix="write messages as a list, not as text")
        return RankedExample(row.origin, prompt, tuple(responses), tools, group, weight)

    def _shown(self, name: str, place: int | None = None) -> str:
        """A column as the file has it, and which of its values."""
        return f"'{self.columns.get(name, name)}'" + ("" if place is None else f" {place + 1}")

    def _responses(self, value: Any) -> list[Text]:
        name = self._shown("responses")
        if not isinstance(value, list):
            raise RowError(f"{name} is {kind_of(value)} where a list of answers is due", fix="write the best one first")
        if len(value) < LEAST:
            what = f"{name} has {len(value)} answer{'' if len(value) == 1 else 's'}"
            raise RowError(what, fix="give at least 2 answers, or remove the row: there is nothing to rank")
        texts = []
        for place, item in enumerate(value):
            texts.append(parse_text(item, self._shown("responses", place)))
            check_answer(texts[-1], self._shown("responses", place))
        kinds = [isinstance(text, str) for text in texts]
        if len(set(kinds)) > 1:
            other = kinds.index(not kinds[0])
            one, two = ("text", "messages") if kinds[0] else ("messages", "text")
            what = f"{self._shown('responses', 0)} is {one} and {self._shown('responses', other)} is {two}"
            raise RowError(what, fix="write all as text or all as messages")
        return texts

    def _fitted(self, prompt: Text, responses: Sequence[Text]) -> tuple[Text, list[Text]]:
        """Prompt and answers of one kind: strings, or messages; a prompt that all answers repeat is read once."""
        if isinstance(prompt, str) and isinstance(responses[0], str):
            return prompt, list(responses)
        plain = [unmarked(text) for text in responses]
        fitted = [fit_answer(prompt, text, self._shown("responses", k)) for k, text in enumerate(plain)]
        for k, (text, (_, answer)) in enumerate(zip(responses, fitted, strict=True)):
            check_scored(text, len(answer), self._shown("responses", k))
        cut = {len(answer) < len(text) for (_, answer), text in zip(fitted, responses, strict=True)}
        if len(cut) > 1 and not isinstance(responses[0], str):
            raise RowError("not all answers begin with the prompt's messages", fix="take them out of the others")
        return fitted[0][0], [answer for _, answer in fitted]

    def _sorted(self, responses: Sequence[Text], value: Any) -> list[Text]:
        """The answers by their scores, the highest first.

        Raises:
            RowError: there is not a number for each, or two are the same: a tie is no order.
        """
        name = self._shown("scores")
        if not isinstance(value, list) or len(value) != len(responses):
            found = f"{len(value)} numbers" if isinstance(value, list) else kind_of(value)
            raise RowError(f"{name} is {found}, and there are {len(responses)} answers", fix="a number for each answer")
        scores = [parse_number(item, self._shown("scores", place)) for place, item in enumerate(value)]
        for score in scores:
            tied = [str(place + 1) for place, other in enumerate(scores) if other == score]
            if len(tied) > 1:
                what = f"{name} ranks answers {' and '.join(tied)} the same ({score:g})"
                raise RowError(what, fix="keep one of them: a tie says nothing about their order")
        return [responses[place] for place in sorted(range(len(scores)), key=lambda place: -scores[place])]

    def _compare(self, row: Row, responses: Sequence[Text]) -> None:
        """Refuse a list that has an answer twice."""
        for place, text in enumerate(responses):
            for other in responses[:place]:
                if text == other:
                    said = text if isinstance(text, str) else text[-1].get("content") or ""
                    raise RowError(f"{self._shown('responses')} has an answer twice", said, "keep one of the two")
                stripped = isinstance(text, str) and isinstance(other, str) and text.strip() == other.strip()
                if stripped or look_alike_texts(text, other):
                    kind = NEARLY_EQUAL if stripped else INVISIBLY_EQUAL
                    self.notes.add(row.origin, kind, fix="keep one of the two")
