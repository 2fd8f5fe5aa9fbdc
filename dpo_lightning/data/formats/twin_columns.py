"""Twin columns: two whose names differ in one word only, such as `response_a, response_b` or `답변1, 답변2`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from dpo_lightning.data.formats.base import check_not_null
from dpo_lightning.data.formats.names import ANSWERS, FILLERS, SCORES
from dpo_lightning.data.formats.turns import is_messages
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_name

ENDS = (("1", "2"), ("0", "1"), ("a", "b"), ("left", "right"), ("first", "second"), ("one", "two"))
"""Words in which the names of the first and of the second column differ."""

NUMBERED = re.compile(r"\d+|[a-d]|left|right|first|second|third|one|two|three")
"""Words by which columns are numbered; a third column beside a pair makes it a list."""

NUMERAL = re.compile(r"[+-]?\d+(\.\d+)?")
WORDS = re.compile(r"\d+|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\da-zA-Z_]+")
TEXTS = ANSWERS | FILLERS | {"assistant", "model", "option", "summary", "translation", "sample", "chat"}
NO_ANSWER = frozenset(("model", "the", "is"))


class Twins(NamedTuple):
    """Two columns whose names differ in one word, in the order of these words.

    Attributes:
        first: the name of the first.
        second: the name of the second.
        ends: the two words, in lower case.
        stem: the other words of the names.
    """

    first: str
    second: str
    ends: tuple[str, str]
    stem: tuple[str, ...]


def split_words(name: str) -> tuple[str, ...]:
    """The words of a column's name in lower case; digits are words of their own."""
    return tuple(word.lower() for word in WORDS.findall(name))


def find_twins(values: Iterable[str]) -> tuple[Twins, ...]:
    """All pairs of columns whose names differ in one word of `ENDS`, and no third column belongs to them."""
    return _find_twins(tuple(values))


@lru_cache(64)  # all rows of a set have nearly the same columns
def _find_twins(names: tuple[str, ...]) -> tuple[Twins, ...]:
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = split_words(name)
        for place, word in enumerate(words):
            if NUMBERED.fullmatch(word):
                groups.setdefault((*words[:place], "", *words[place + 1 :]), {})[word] = name
    return tuple(
        Twins(found[ends[0]], found[ends[1]], ends, tuple(filter(None, key)))
        for key, found in groups.items()
        for ends in ENDS
        if found.keys() == {*ends}
    )


def find_answers(values: Mapping[str, Any]) -> list[Twins]:
    """The twins that by name and content are two answers."""
    return [
        twins
        for twins in find_twins(values)
        if {*twins.stem} <= TEXTS
        and not (twins.stem and {*twins.stem} <= NO_ANSWER)
        and all(map(is_answer, (values[twins.first], values[twins.second])))
    ]


def find_scores(values: Mapping[str, Any]) -> list[Twins]:
    """The twins that by name and content are scores of two answers."""
    return [
        twins
        for twins in find_twins(values)
        if " ".join(twins.stem) in SCORES and all(map(_is_score, (values[twins.first], values[twins.second])))
    ]


def order_answers(values: Mapping[str, Any], answers: Sequence[str], place: int) -> dict[str, Any]:
    """`chosen` and `rejected`, where the answer at `place` wins.

    Raises:
        RowError: an answer is neither text nor messages.
    """
    for name in answers:
        check_not_null(values[name], name)
        if not isinstance(values[name], (str, dict, list)):
            raise RowError(f"'{excerpt_name(name)}' is not text", values[name], "write it as text, or remove the row")
    return {"chosen": values[answers[place]], "rejected": values[answers[1 - place]]}


def is_answer(value: Any) -> bool:
    """Whether a value is a text, a message or a list of messages."""
    return (isinstance(value, str) and bool(value.strip())) or is_messages(value) or is_messages([value])


def _is_score(value: Any) -> bool:
    return is_number(value) or (isinstance(value, str) and bool(NUMERAL.fullmatch(value.strip())))


def is_number(value: Any) -> bool:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
