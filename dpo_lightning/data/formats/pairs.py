"""Preference pairs: two answers to a prompt, `chosen` preferred to `rejected`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dpo_lightning.data.examples import Encoded, EncodedAnswer, Example, Text
from dpo_lightning.data.formats.columns import look_alike, refuse_unpaired
from dpo_lightning.data.formats.duplicates import check_order
from dpo_lightning.data.formats.fields import fit_answer, look_alike_texts, parse_number, strip_text
from dpo_lightning.data.formats.implicit_prompts import split_messages, split_strings
from dpo_lightning.data.formats.row_format import RowFormat
from dpo_lightning.data.formats.turn_marks import check_scored, unmarked
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row

NEARLY_EQUAL = "pairs that differ only in outer white space or Unicode form"
INVISIBLY_EQUAL = "pairs that differ only in invisible characters"
REPEATS_PROMPT = "pairs whose answers begin with the prompt's messages (read once)"


@dataclass(frozen=True, slots=True)
class EncodedPair(Encoded):
    """The chosen answer, then the rejected one."""

    noun: ClassVar[str] = "pairs"
    margin: float | None = None

    @property
    def chosen(self) -> EncodedAnswer:
        """The first answer."""
        return self.answers[0]

    @property
    def rejected(self) -> EncodedAnswer:
        """The second answer."""
        return self.answers[1]

    @property
    def columns(self) -> Mapping[str, float | bool]:
        """`margins`, 0 where the row has none."""
        return {"margins": self.margin or 0.0}


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """The first answer was preferred to the second one."""

    margin: float | None = None
    """By how much the chosen answer was found better, where the row has the column."""

    @property
    def chosen(self) -> Text:
        """The first answer."""
        return self.answers[0]

    @property
    def rejected(self) -> Text:
        """The second answer."""
        return self.answers[1]

    def encode(self, prompt_ids: Sequence[int], answers: tuple[EncodedAnswer, ...]) -> EncodedPair:
        """The pair as token ids."""
        return EncodedPair(self.origin, prompt_ids, answers, self.weight, self.margin)


class PairFormat(RowFormat):
    """`prompt, chosen, rejected` as strings or messages; without a `prompt`, it is what both answers begin with."""

    example = PairExample
    columns = ("prompt", "chosen", "rejected")
    optional: ClassVar[tuple[str, ...]] = ("margin",)
    answers = ("chosen", "rejected")

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """Read the prompt out of the answers where no column has it."""
        refuse_unpaired(rows, present)
        missing = [name for name in self.answers if name not in present]
        if "prompt" in present:
            return missing
        if missing or self._has_prompt_elsewhere(rows, present):
            return ["prompt", *missing]
        self.needed = self.answers
        return []

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read; a prompt that is no column has no `input`."""
        return tuple(name for name in super().used if name != "input" or "prompt" in self.needed)

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Prompt, chosen and rejected, compared with each other."""
        texts = {name: unmarked(values[name]) for name in self.answers}
        chosen, rejected = texts.values()
        self._compare(row, chosen, rejected)
        if isinstance(chosen, str) != isinstance(rejected, str):
            kinds = ("text", "messages") if isinstance(chosen, str) else ("messages", "text")
            what = "'chosen' is {} and 'rejected' is {}".format(*kinds)
            raise RowError(what, fix="write both as text or both as messages")
        if "prompt" in self.needed:
            prompt, *answers = self._fit_to_prompt(row, values["prompt"], chosen, rejected)
        else:
            prompt, *answers = self._split(row, chosen, rejected)
        for name, answer in zip(self.answers, answers, strict=True):
            check_scored(values[name], len(answer), self.shown(name))
        return prompt, tuple(answers)

    def said(self, row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
        """The margin, where the row has one."""
        given = row.values
        return {"margin": parse_number(given["margin"], self.shown("margin")) if "margin" in given else None}

    @classmethod
    def check(cls, examples: Sequence[PairExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Note repeats; pairs that contradict others are bad unless allowed."""
        check_order(examples, allow, bad, notes)

    def _has_prompt_elsewhere(self, rows: Sequence[Row], present: Collection[str]) -> bool:
        """Whether rows without a `prompt` have it under another name; whole conversations bring their own."""
        others = [name for name in present if name == "input" or name not in self.known()]
        return bool(look_alike("prompt", others, self.columns)) and not all(map(_is_conversation, rows))

    def _split(self, row: Row, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
        """The common beginning of both texts is the prompt."""
        prompt: Text
        if isinstance(chosen, str) and isinstance(rejected, str):
            prompt, chosen, rejected = split_strings(chosen, rejected)
        else:
            prompt, chosen, rejected = split_messages(chosen, rejected)  # type: ignore[arg-type]
        prompt = self.context.joined(row, prompt)
        if isinstance(prompt, str) or not isinstance(chosen, str):
            return prompt, chosen, rejected
        return prompt, fit_answer(prompt, chosen, "'chosen'")[1], fit_answer(prompt, rejected, "'rejected'")[1]

    def _fit_to_prompt(self, row: Row, prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
        """Prompt and answers of one kind: strings, or messages."""
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
                names = " and ".join(map(self.shown, self.answers))
                text = chosen if isinstance(chosen, str) else chosen[-1].get("content") or ""
                raise RowError(f"{names} are equal", text, "remove the row: there is nothing to prefer")
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")
        elif strip_text(chosen, str.strip) == strip_text(rejected, str.strip):
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")
        elif look_alike_texts(chosen, rejected):
            self.notes.add(row.origin, INVISIBLY_EQUAL, fix="remove the row")


def _is_conversation(row: Row) -> bool:
    chosen = row.values.get("chosen")
    first = chosen[0] if isinstance(chosen, list) and chosen else None
    return isinstance(first, dict) and first.get("role") != "assistant"
