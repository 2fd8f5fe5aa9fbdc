"""Ranked lists: any number of answers to a prompt, the best first or with a score each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dpo_lightning.data.examples import Encoded, Example, Text
from dpo_lightning.data.kinds.duplicates import check_order
from dpo_lightning.data.kinds.fields import check_answer, fit_answer, look_alike_texts, parse_number, parse_text
from dpo_lightning.data.kinds.row_kind import RowKind
from dpo_lightning.data.kinds.turn_marks import check_no_mark, remove_marks
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row, kind_of
from dpo_lightning.data.readers.text_cleaning import decode_json

LEAST = 2
NEARLY_EQUAL = "lists with answers that differ only in outer white space"
INVISIBLY_EQUAL = "lists with answers that differ only in invisible characters"


@dataclass(frozen=True, slots=True)
class EncodedRanked(Encoded):
    """A ranked list as token ids; the best answer is first."""

    noun: ClassVar[str] = "lists"
    answers_first: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class RankedExample(Example):
    """A ranked list as texts; the best answer is first."""

    encoded = EncodedRanked


class RankedKind(RowKind):
    """`prompt, responses`: a list of answers, the best first or in any order with a column `scores`."""

    example = RankedExample
    reads = "ranked"
    columns = ("prompt", "responses")
    optional = ("scores",)
    answers = ("responses",)

    def parse(self, name: str, value: Any) -> Any:
        """Parse a prompt, or a list of at least two answers, all text or all messages."""
        if name != "responses":
            return super().parse(name, value)
        shown = self.quote_name(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = decode_json(value, shown, "write a list, the best answer first")
        if not isinstance(value, list):
            raise RowError(
                f"{shown} is {kind_of(value)}, not a list of answers", fix="write a list, the best answer first"
            )
        if len(value) < LEAST:
            what = f"{shown} has {len(value)} answer{'' if len(value) == 1 else 's'}"
            raise RowError(what, fix="give at least 2 answers, or remove the row")
        texts = []
        for number, item in enumerate(value, 1):
            texts.append(parse_text(item, f"{shown} {number}"))
            check_answer(texts[-1], f"{shown} {number}")
        kinds = [isinstance(text, str) for text in texts]
        if len(set(kinds)) > 1:
            other = kinds.index(not kinds[0])
            one, two = ("text", "messages") if kinds[0] else ("messages", "text")
            what = f"{shown} 1 is {one} and {shown} {other + 1} is {two}"
            raise RowError(what, fix="write all as text or all as messages")
        return texts

    def fit(self, row: Row, values: Mapping[str, Any]) -> tuple[Text, tuple[Text, ...]]:
        """Sort the answers, and convert prompt and answers to the same type; a prompt in all answers is removed."""
        prompt = self.context.add_turns(row, self.context.add_input(row, values["prompt"]))
        responses: Sequence[Text] = values["responses"]
        if not (isinstance(prompt, str) and isinstance(responses[0], str)):
            prompt, responses = self._fit_to_prompt(prompt, responses)
        if row.values.get("scores") is not None:
            responses = self._sort(responses, row.values["scores"])
        self._compare(row, responses)
        return prompt, tuple(responses)

    @classmethod
    def check(cls, examples: Sequence[RankedExample], allow: Collection[str], bad: BadRows, notes: Notes) -> None:
        """Note repeated lists; lists that contradict others are bad unless allowed."""
        check_order(examples, allow, bad, notes)

    def _fit_to_prompt(self, prompt: Text, responses: Sequence[Text]) -> tuple[Text, list[Text]]:
        """Convert prompt and answers to messages; either all answers begin with the prompt's messages or none does."""
        names = [f"{self.quote_name('responses')} {number}" for number in range(1, len(responses) + 1)]
        fitted = [fit_answer(prompt, remove_marks(text), name) for text, name in zip(responses, names, strict=True)]
        for text, (_, answer), name in zip(responses, fitted, names, strict=True):
            check_no_mark(text, len(answer), name)
        cut = {len(answer) < len(text) for (_, answer), text in zip(fitted, responses, strict=True)}
        if len(cut) > 1 and not isinstance(responses[0], str):
            raise RowError("only some answers begin with the prompt's messages", fix="remove them from those")
        return fitted[0][0], [answer for _, answer in fitted]

    def _sort(self, responses: Sequence[Text], value: Any) -> list[Text]:
        """Sort the answers by their scores, the highest first.

        Raises:
            RowError: the number of scores differs from that of answers, or two scores are equal.
        """
        name = self.quote_name("scores")
        value = decode_json(value, name, "write a number for each answer")
        if not isinstance(value, list) or len(value) != len(responses):
            found = f"{len(value)} numbers" if isinstance(value, list) else kind_of(value)
            raise RowError(
                f"{name} is {found}, and there are {len(responses)} answers", fix="write a number for each answer"
            )
        scores = [parse_number(item, f"{name} {number}") for number, item in enumerate(value, 1)]
        for score in scores:
            tied = [str(place + 1) for place, other in enumerate(scores) if other == score]
            if len(tied) > 1:
                what = f"{name} ranks answers {' and '.join(tied)} the same ({score:g})"
                raise RowError(what, fix="keep one of them")
        return [responses[place] for place in sorted(range(len(scores)), key=lambda place: -scores[place])]

    def _compare(self, row: Row, responses: Sequence[Text]) -> None:
        """Refuse a list that contains an answer twice; note answers that only look the same."""
        for place, text in enumerate(responses):
            for other in responses[:place]:
                if text == other:
                    content = text if isinstance(text, str) else text[-1].get("content") or ""
                    raise RowError(
                        f"{self.quote_name('responses')} contains an answer twice", content, "keep one of the two"
                    )
                stripped = isinstance(text, str) and isinstance(other, str) and text.strip() == other.strip()
                if stripped or look_alike_texts(text, other):
                    kind = NEARLY_EQUAL if stripped else INVISIBLY_EQUAL
                    self.notes.add(row.origin, kind, fix="keep one of the two")
