"""Two answers with a score each, in columns such as `answer_0, answer_1, score_0, score_1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lightning.data.formats.base import Format, LeftOut, read_object
from dpo_lightning.data.formats.comparisons import find_prompt, find_verdicts
from dpo_lightning.data.formats.scored_lists import read_number
from dpo_lightning.data.formats.twin_columns import find_answers, find_scores, order_answers
from dpo_lightning.data.formats.verdicts import TIE
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.data.readers.text_cleaning import excerpt_name
from dpo_lightning.errors import ExitCode, Problem, UserError


class ScoredPairs(Format):
    """A question, two answers and a score of each in twin columns: `answer_0, answer_1, score_0, score_1`."""

    name, title, kind = "scored-pairs", "two answers with a score each", "pairs"
    guesses = True

    def __init__(self, rows: Sequence[Row]) -> None:
        """Assign the columns by the first row that has this format."""
        super().__init__(rows)
        values = next((row.values for row in rows if self.claims(row.values)), rows[0].values)
        answers, scores = find_answers(values), find_scores(values)
        if not (answers and scores and find_prompt(values, answers[0])):
            what = "the rows have no question and two answers with a score each, such as prompt, answer_1, score_1, ..."
            raise UserError(ExitCode.DATA, Problem(what, str(rows[0].origin)), fix="rename the columns")
        self.answers, self.scores = answers[0], scores[0]
        self.prompt = find_prompt(values, self.answers)
        self.columns = (self.prompt, *self.answers[:2], *self.scores[:2])
        self.renames = {"prompt": self.prompt} if self.prompt != "prompt" else {}

    def describe(self) -> str:
        """The title, the columns that were found, and how their values order the answers."""
        names = [", ".join(map(excerpt_name, twins[:2])) for twins in (self.answers, self.scores)]
        return f"{self.title} (format {self.name}: {names[0]} by {names[1]}, the highest is best)"

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether there is one pair of answers and one of scores, and no verdict."""
        answers, scores = find_answers(values), find_scores(values)
        one = len(answers) == len(scores) == 1 and answers[0].ends == scores[0].ends
        return one and not find_verdicts(values) and bool(find_prompt(values, answers[0])) and "chosen" not in values

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Order the answers by their scores, higher first."""
        return {"prompt": values[self.prompt], **order_by_scores(values, self.answers[:2], self.scores[:2])}


class WebGPT(Format):
    """`question` (an object with `full_text`), `answer_0, answer_1, score_0, score_1`: WebGPT comparisons."""

    name, title, kind = "webgpt", "WebGPT comparisons", "pairs"
    columns = ("question", "answer_0", "answer_1", "score_0", "score_1")
    renames = {"prompt": "question"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the question is an object."""
        return super().claims(values) and isinstance(values["question"], dict)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take the text out of the question, and order the answers by their scores."""
        prompt = read_object(values["question"], "question", ("full_text",))["full_text"]
        return {"prompt": prompt, **order_by_scores(values, ("answer_0", "answer_1"), ("score_0", "score_1"))}


def order_by_scores(values: Mapping[str, Any], answers: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    """`chosen` and `rejected` of two answers, of which the one with the higher score wins.

    Raises:
        RowError: a score is not a finite number, or the text of one.
        LeftOut: both are equal.
    """
    first, second = (read_number(values[name], f"'{excerpt_name(name)}'") for name in scores)
    if first == second:
        raise LeftOut(TIE)
    return order_answers(values, answers, int(first < second))
