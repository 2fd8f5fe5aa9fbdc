"""Rows that differ from ours in the names of their columns only; the names are compared with lists of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dpo_lightning.data.formats import own
from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.names import (
    ANSWERS,
    JUDGEMENTS,
    LABELS,
    WORSE,
    find_answer,
    find_preference,
    find_question,
    has_words,
    match_names,
    normalize_label,
)
from dpo_lightning.data.formats.transcripts import is_transcript
from dpo_lightning.data.formats.words import split_name
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name

DOLLY = frozenset(("instruction", "context", "response", "category"))
"""Columns of Dolly's rows, which have a format of their own."""


class NamedColumns(Format):
    """Base of the formats that assign columns by name; subclasses return our column -> the file's of a row."""

    guesses = True
    own: ClassVar[type[Format]]
    """This package's format of the same kind; rows that it claims are not claimed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Assign the columns by the first row that has this format."""
        super().__init__(rows)
        found = next(filter(None, (self.assign(row.values) for row in rows)), {})
        self.renames = {ours: name for ours, name in found.items() if ours != name}
        self.columns = tuple(found.values())
        self._found = found

    @classmethod
    def assign(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Our column -> the file's, for a row; empty if no column or more than one has the name of a needed one."""
        return {}

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether every needed column is found under one name, and the row does not have this package's own format."""
        return bool(cls.assign(values)) and not cls.own.claims(values)

    def describe(self) -> str:
        """The title, and the column that was found for each of ours."""
        found = ", ".join(f"{ours} = {excerpt_name(name)}" for ours, name in self._found.items())
        return f"{self.title} (format {self.name}: {found})"

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns under our names."""
        return {ours: values[name] for ours, name in self._found.items()}


class NamedPairs(NamedColumns):
    """A question and two answers, such as `question, chosen_response, rejected_response` or `질문, 선택, 거절`."""

    name, title, kind = "named-pairs", "pairs", "pairs"
    own = own.Pairs

    @classmethod
    def assign(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Find one question, one preferred answer and one other answer; the values of the last two are texts."""
        roles = {name: find_preference(name) for name in values}
        chosen = _find_answer(values, [name for name, role in roles.items() if role == "chosen"], "chosen")
        rejected = _find_answer(values, [name for name, role in roles.items() if role == "rejected"], "rejected")
        chosen = chosen or _find_plain_answer(values, rejected)
        prompt = find_question(values)
        if not (chosen and rejected and prompt) or _is_token(values, chosen, rejected) or is_transcript(values[prompt]):
            return {}
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


class NamedUnpaired(NamedColumns):
    """A question, an answer and a verdict on it, such as `question, answer, thumbs_up`."""

    name, title, kind = "named-unpaired", "answers with a label", "unpaired"
    own = own.Unpaired

    @classmethod
    def assign(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Find one question, one answer and one label."""
        labels, answer, prompt = match_names(values, LABELS), find_answer(values), find_question(values)
        if not (len(labels) == 1 and answer and prompt) or normalize_label(values[labels[0]]) not in JUDGEMENTS:
            return {}
        return {"prompt": prompt, "completion": answer, "label": labels[0]}


class NamedSFT(NamedColumns):
    """A question and an answer, such as `question, answer` or `질문, 답변`."""

    name, title, kind = "named-sft", "questions with an answer", "sft"
    own = own.SFT

    @classmethod
    def assign(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Find one question and one answer; rows with two answers or a verdict are no demonstrations."""
        answer, prompt = find_answer(values), find_question(values)
        if not (answer and prompt) or any(map(find_preference, values)) or values.keys() >= DOLLY:
            return {}
        return {"prompt": prompt, "completion": answer}


def _find_answer(values: Mapping[str, Any], names: list[str], ours: str) -> str:
    """Of the columns with one answer of a pair, the one with our name, or else the only one."""
    if ours in names:
        return ours
    return names[0] if len(names) == 1 else ""


def _find_plain_answer(values: Mapping[str, Any], rejected: str) -> str:
    """The answer whose name is that of the rejected one without the word for it: `response`; "" without one."""
    rest = tuple(word for word in split_name(rejected) if word not in WORSE)
    return next((name for name in match_names(values, ANSWERS) if split_name(name) == rest != ()), "")


def _is_token(values: Mapping[str, Any], *names: str) -> bool:
    """Whether a value is a number or such, or both are single letters or digits that may point to other columns."""
    texts = [values[name] for name in names]
    if not all(isinstance(text, (str, list, dict)) for text in texts):
        return True
    short = all(isinstance(text, str) and len(text.strip()) < 2 for text in texts)
    return short and any(has_words(value) for name, value in values.items() if name not in names and name != "prompt")
