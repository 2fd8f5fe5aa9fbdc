"""Lists of answers with a list of scores or ranks beside them: `responses, ratings` or `completions, rank`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dpo_lightning.data.formats.base import Format, LeftOut, read_list
from dpo_lightning.data.formats.names import (
    ANSWERS,
    RANKS,
    SCORES,
    find_other_question,
    match_names,
)
from dpo_lightning.data.formats.transcripts import is_transcript, split_prompt
from dpo_lightning.data.formats.twin_columns import is_answer
from dpo_lightning.data.formats.words import normalize_name
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name
from dpo_lightning.errors import ExitCode, Problem, UserError

ALL_EQUAL = "lists whose answers all have the same score"
TIED = "answers with the score of an earlier answer, left out"
RANK, ORDER = "rank", "order"
CLEAR_RANKS = frozenset((RANK, "ranks"))
"""Names of columns with the rank of each answer; other words may also mean the numbers of the answers in order."""


class OrderedLists(Format):
    """Base of the formats that become lists of answers with scores; of answers with equal scores one is kept."""

    kind = "ranked"

    def convert_rows(self, rows: Iterable[Row], bad: BadRows, notes: Notes) -> Iterator[Row]:
        """Convert rows, and note the answers that are left out."""
        for row in super().convert_rows(rows, bad, notes):
            yield join_answers(row, row.values["responses"], row.values["scores"], notes)


class ScoredLists(OrderedLists):
    """A question, a list of answers and a list of numbers: scores or ratings, or ranks (the least is best)."""

    name, title = "scored-lists", "lists of answers with scores or ranks"
    guesses, mappable = True, (RANK, ORDER)

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has all three columns, not all under our names."""
        lists, orders = find_lists(values), find_orders(values)
        if not (len(lists) == 1 and orders and find_prompt(values)):
            return False
        return len(orders) == 1 and (find_prompt(values), *lists, *orders) != ("prompt", "responses", "scores")

    def configure(self, columns: Mapping[str, str] | None, first_wins: str | int | None) -> None:
        """Assign the columns by the first row that has this format, and find out what their numbers mean."""
        super().configure(columns, first_wins)
        row = next((row for row in self.rows if self.claims(row.values)), self.rows[0])
        lists, orders, self.prompt = find_lists(row.values), find_orders(row.values), find_prompt(row.values)
        if not (len(lists) == len(orders) == 1 and self.prompt):
            problem = Problem("the rows have no single list of answers with one list of numbers", str(row.origin))
            raise UserError(ExitCode.DATA, problem, fix="write prompt, responses and scores, or remove other columns")
        (self.answers,), (self.numbers,) = lists, orders
        self.columns = (self.prompt, self.answers, self.numbers)
        found = {"prompt": self.prompt, "responses": self.answers, "scores": self.numbers}
        self.renames = {ours: name for ours, name in found.items() if ours != name}
        self.ranks = normalize_name(self.numbers) not in SCORES
        if self.ranks and not (CLEAR_RANKS | set(self.mapped)) & {normalize_name(self.numbers)}:
            self._check_rankings()

    def describe(self) -> str:
        """The title, the columns that were found, and how their values order the answers."""
        meaning = "the least is best" if self.ranks else "the highest is best"
        meaning = "numbers of the answers, the best first" if self._is_order() else meaning
        return f"{self.title} (format {self.name}: {self.answers} by {self.numbers}, {meaning})"

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answers with a score each."""
        answers = read_list(values[self.answers], self.answers)
        numbers = read_numbers(values[self.numbers], self.numbers, len(answers))
        if self._is_order():
            places = _find_places(numbers)
            if places is None:
                what = f"'{self.numbers}' does not have the number of each answer once"
                raise RowError(what, numbers, "write 1, 2, ... in the order of the answers, the best first")
            numbers = [-float(places.index(place)) for place in range(len(places))]
        elif self.ranks:
            numbers = [-number for number in numbers]
        return {"prompt": read_prompt(values, self.prompt), "responses": answers, "scores": numbers}

    def _is_order(self) -> bool:
        return self.numbers == ORDER and ORDER in self.mapped

    def _check_rankings(self) -> None:
        """Check that it makes no difference whether numbers are ranks of answers, or answers in the order of ranks.

        Raises:
            UserError: 65, with the first row where it does.
        """
        for row in self.rows:
            value = row.values.get(self.numbers)
            places = _find_places(value) if isinstance(value, list) else None
            if places is None or any(places[place] != i for i, place in enumerate(places)):
                shown = excerpt_name(self.numbers)
                what = f"'{shown}' may have the rank of each answer, or the numbers of the answers in order"
                fix = (
                    f"--data.columns.NAME {shown}, where NAME is {RANK} (the rank of each answer, the least is best) "
                    f"or {ORDER} (the numbers of the answers, the best first)"
                )
                raise UserError(ExitCode.DATA, Problem(what, str(row.origin), str(value)), fix=fix)


def join_answers(row: Row, answers: Sequence[Any], scores: Sequence[float], notes: Notes) -> Row:
    """The row with answers and their scores; of answers with equal scores the first is kept, the others are noted."""
    kept: dict[float, Any] = {}
    for answer, score in zip(answers, scores, strict=True):
        if score in kept:
            notes.add(row.origin, TIED, fix="give each answer its own score, or leave out --data.strict")
        kept.setdefault(score, answer)
    return row._replace(values={**row.values, "responses": [*kept.values()], "scores": [*kept]})


def check_preference(scores: Sequence[float]) -> None:
    """Check that not all scores of a list are equal.

    Raises:
        LeftOut: they are.
    """
    if len(scores) > 1 and len({*scores}) == 1:
        raise LeftOut(ALL_EQUAL)


def find_lists(values: Mapping[str, Any]) -> list[str]:
    """The columns with a list of answers: texts, messages or conversations."""
    names = match_names(values, ANSWERS)
    return [name for name in names if isinstance(values[name], list) and values[name] and is_answer(values[name][0])]


def find_orders(values: Mapping[str, Any]) -> list[str]:
    """The columns with a list of scores or ranks."""
    names = match_names(values, SCORES | RANKS | {ORDER})
    return [name for name in names if isinstance(values[name], list)]


def find_prompt(values: Mapping[str, Any]) -> str:
    """The column with the question; "" for none or several."""
    return find_other_question(values, match_names(values, ANSWERS))


def read_prompt(values: Mapping[str, Any], name: str) -> Any:
    """The question; a transcript that ends with an empty turn of the assistant as messages."""
    return split_prompt(values[name], name) if is_transcript(values[name]) else values[name]


def read_numbers(value: Any, name: str, count: int) -> list[float]:
    """Return a list of `count` finite numbers.

    Raises:
        RowError: it is something else.
        LeftOut: all are equal.
    """
    given = read_list(value, name)
    if len(given) != count:
        what = f"'{name}' has {len(given)} numbers, and there are {count} answers"
        raise RowError(what, given, "write a number for each answer")
    numbers = [read_number(item, f"'{name}' {place}") for place, item in enumerate(given, 1)]
    check_preference(numbers)
    return numbers


def read_number(value: Any, place: str) -> float:
    """Return a finite number; a text that is one is converted.

    Raises:
        RowError: the value is something else.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"{place} is not a number", value, "write a number, or remove the row")
    return number


def _find_places(numbers: Sequence[Any]) -> list[int] | None:
    """Numbers that are 0, 1, ... or 1, 2, ... in any order, as places from 0; None for others."""
    least = min((number for number in numbers if isinstance(number, (int, float))), default=0)
    places = [int(n - least) if isinstance(n, (int, float)) and n == int(n) else -1 for n in numbers]
    return places if least in (0, 1) and sorted(places) == list(range(len(numbers))) else None
