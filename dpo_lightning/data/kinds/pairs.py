"""Preference pairs: two answers to a prompt, `chosen` preferred to `rejected`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dpo_lightning.data.examples import Encoded, EncodedAnswer, Example, Text
from dpo_lightning.data.kinds.columns import find_look_alike
from dpo_lightning.data.kinds.duplicates import check_order
from dpo_lightning.data.kinds.fields import fit_answer, look_alike_texts, parse_number, strip_text
from dpo_lightning.data.kinds.implicit_prompts import show_end, split_messages, split_strings
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.turn_marks import check_no_mark, remove_marks
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row

NEARLY_EQUAL = "pairs that differ only in outer white space or Unicode form"
NEGATIVE_MARGIN = "pairs with a margin below 0, as if the rejected answer were the better one"
INVISIBLY_EQUAL = "pairs that differ only in invisible characters"
SCORES = tuple(
    (template.format("chosen"), template.format("rejected"))
    for word in ("score", "rating", "reward")
    for template in (f"{{}}_{word}", f"{word}_{{}}")
)
"""Columns with a score of each answer: `chosen_score, rejected_score`, `score_chosen, score_rejected`, ..."""

SPLIT_OFF = "prompts that are the turns with which both answers begin"
OTHER_QUESTIONS = "pairs that differ in a question already, and not only in answers"
REPEATS_PROMPT = "pairs whose answers begin with the prompt's messages (read once)"


@dataclass(frozen=True, slots=True)
class EncodedPair(Encoded):
    """A pair as token ids; `answers` are the chosen and the rejected one."""

    noun: ClassVar[str] = "pairs"
    margin: float | None = None

    @property
    def chosen(self) -> EncodedAnswer:
        """The preferred answer, `answers[0]`, as token ids."""
        return self.answers[0]

    @property
    def rejected(self) -> EncodedAnswer:
        """The other answer, `answers[1]`, as token ids."""
        return self.answers[1]

    @property
    def columns(self) -> Mapping[str, float | bool]:
        """`margins`, 0 where the row has none."""
        return {"margins": self.margin or 0.0}


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """A pair as texts; `answers` are the chosen and the rejected one."""

    encoded = EncodedPair

    margin: float | None = None
    """The column `margin`: by how much the chosen answer is better, in the unit of the data; None without it."""

    @property
    def chosen(self) -> Text:
        """The preferred answer, `answers[0]`, as a string or messages."""
        return self.answers[0]

    @property
    def rejected(self) -> Text:
        """The other answer, `answers[1]`, as a string or messages."""
        return self.answers[1]


class PairKind(RowKind):
    """`prompt, chosen, rejected` as strings or messages; without a column `prompt`, both answers begin with it."""

    example = PairExample
    reads = "pairs"
    columns = ("prompt", "chosen", "rejected")
    optional: ClassVar[tuple[str, ...]] = ("margin",)
    answers = ("chosen", "rejected")

    def choose_columns(self, rows: Sequence[Row], present: Collection[str]) -> list[str]:
        """Read the prompt from the common beginning of the answers where no column has it."""
        missing = [name for name in self.answers if name not in present]
        if "prompt" in present:
            return missing
        if missing or self._has_prompt_elsewhere(rows, present):
            return ["prompt", *missing]
        self.needed = self.answers
        return []

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read: `input` only where the prompt is a column."""
        return tuple(name for name in super().used if name != "input" or "prompt" in self.needed)

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Compare the answers, and fit them to the prompt or split the prompt off them."""
        texts = {name: remove_marks(values[name]) for name in self.answers}
        chosen, rejected = texts.values()
        self._compare(row, chosen, rejected)
        self._note_scores(row)
        if isinstance(chosen, str) != isinstance(rejected, str):
            kinds = ("text", "messages") if isinstance(chosen, str) else ("messages", "text")
            what = "'chosen' is {} and 'rejected' is {}".format(*kinds)
            raise RowError(what, fix="write both as text or both as messages")
        if "prompt" in self.needed:
            prompt, *answers = self._fit_to_prompt(row, values["prompt"], chosen, rejected)
        else:
            prompt, *answers = self._split(row, chosen, rejected)
        self._check_question(row, prompt, *answers)
        for name, answer in zip(self.answers, answers, strict=True):
            check_no_mark(values[name], len(answer), self.quote_name(name))
        return prompt, tuple(answers)

    def _check_question(self, row: Row, prompt: Text, chosen: Text, rejected: Text) -> None:
        """Refuse conversations that differ from their first question on; note those that do so from a later one on."""
        if isinstance(prompt, str) or isinstance(chosen, str) or isinstance(rejected, str):
            return
        first, second = chosen[0], rejected[0]
        if first == second or not first["role"] == second["role"] == "user":
            return
        if not any(message["role"] == "user" for message in prompt):
            names = " and ".join(map(self.quote_name, self.answers))
            fix = "begin both with the same question, or remove the row"
            raise RowError(f"{names} answer different questions", str(second.get("content") or ""), fix)
        self.notes.add(row.origin, OTHER_QUESTIONS, fix="begin both answers with the same question, or remove the row")

    def _note_scores(self, row: Row) -> None:
        """Note a row whose scores of both answers prefer the rejected one."""
        for chosen, rejected in SCORES:
            one, other = (row.values.get(name) for name in (chosen, rejected))
            if isinstance(one, (int, float)) and isinstance(other, (int, float)) and one < other:
                what = f"pairs whose {chosen} is below {rejected}"
                self.notes.add(row.origin, what, fix="exchange the answers or correct the scores")

    def parse_annotations(self, row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
        """The `margin` of the row; None without the column."""
        if "margin" not in row.values:
            return {"margin": None}
        margin = parse_number(row.values["margin"], self.quote_name("margin"))
        if margin < 0:
            self.notes.add(row.origin, NEGATIVE_MARGIN, fix="exchange the answers, or correct the margin")
        return {"margin": margin}

    @classmethod
    def check(cls, examples: Sequence[PairExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Note repeated pairs; pairs that contradict others are bad unless allowed."""
        check_order(examples, allow, bad, notes)

    def _has_prompt_elsewhere(self, rows: Sequence[Row], present: Collection[str]) -> bool:
        """Whether the prompt seems to be in a column of another name; never where answers are whole conversations."""
        others = [name for name in present if name == "input" or name not in self.known()]
        return bool(find_look_alike("prompt", others, self.columns)) and not all(map(_is_conversation, rows))

    def _split(self, row: Row, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
        """Split the common beginning off both answers as the prompt."""
        prompt: Text
        if isinstance(chosen, str) and isinstance(rejected, str):
            prompt, chosen, rejected = split_strings(chosen, rejected)
            self.context.count(SPLIT_OFF, example=f"{show_end(prompt)!r} at {row.origin}")
        else:
            prompt, chosen, rejected = split_messages(chosen, rejected)  # type: ignore[arg-type]
        prompt = self.context.add_turns(row, prompt)
        if isinstance(prompt, str) or not isinstance(chosen, str):
            return prompt, chosen, rejected
        return prompt, fit_answer(prompt, chosen, "'chosen'")[1], fit_answer(prompt, rejected, "'rejected'")[1]

    def _fit_to_prompt(self, row: Row, prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
        """Convert prompt and answers to the same type: all strings, or all messages."""
        prompt = self.context.add_turns(row, self.context.add_input(row, prompt))
        if isinstance(prompt, str) and isinstance(chosen, str):
            return prompt, chosen, rejected
        context, first = fit_answer(prompt, chosen, "'chosen'")
        _, second = fit_answer(prompt, rejected, "'rejected'")
        if isinstance(chosen, str):
            return context, first, second
        if len(first) < len(chosen) and len(second) < len(rejected):
            self.notes.add(row.origin, REPEATS_PROMPT, fix="remove the prompt's messages from the answers")
        elif len(first) < len(chosen) or len(second) < len(rejected):
            raise RowError("only one answer begins with the prompt's messages", fix="remove them from it")
        return context, first, second

    def _compare(self, row: Row, chosen: Text, rejected: Text) -> None:
        if chosen == rejected:
            # If just one of them was changed by NFC, they are equal only since: a useless pair, but not a copy.
            if len(row.recomposed & {"chosen", "rejected"}) != 1:
                names = " and ".join(map(self.quote_name, self.answers))
                text = chosen if isinstance(chosen, str) else chosen[-1].get("content") or ""
                raise RowError(f"{names} are equal, so there is no preference", text, "remove the row")
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")
        elif strip_text(chosen, str.strip) == strip_text(rejected, str.strip):
            self.notes.add(row.origin, NEARLY_EQUAL, fix="remove the row")
        elif look_alike_texts(chosen, rejected):
            self.notes.add(row.origin, INVISIBLY_EQUAL, fix="remove the row")


def _is_conversation(row: Row) -> bool:
    chosen = row.values.get("chosen")
    first = chosen[0] if isinstance(chosen, list) and chosen else None
    return isinstance(first, dict) and first.get("role") != "assistant"
