"""Lists of answers as objects with a text and a score or rank each: Nectar, UltraFeedback, NeMo-RL, Gemini."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dpo_lightning.data.formats.base import read_list, read_object
from dpo_lightning.data.formats.names import ANSWERS, match_names
from dpo_lightning.data.formats.scored_lists import (
    OrderedLists,
    check_preference,
    find_orders,
    find_prompt,
    read_number,
    read_prompt,
)
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.errors import ExitCode, Problem, UserError

TEXT_KEYS = ("text", "response", "content", "answer", "output", "completion", "message", "generation")
SCORE_KEYS = ("score", "rating", "reward", "rank")
RANK = "rank"


class ScoredObjects(OrderedLists):
    """A question, and a list of objects that have an answer and its score (the highest is best) or rank (the least)."""

    name, title = "scored-objects", "lists of answers with a score or rank in each"
    guesses = True
    keys: ClassVar[tuple[str, ...]] = SCORE_KEYS

    def __init__(self, rows: Sequence[Row]) -> None:
        """Assign the columns and keys by the first row that has this format."""
        super().__init__(rows)
        values = next((row.values for row in rows if self.claims(row.values)), rows[0].values)
        found = find_objects(values, self.keys)
        self.prompt = find_prompt(values)
        if len(found) != 1 or not self.prompt:
            problem = Problem("the rows have no question with one list of answers with scores", str(rows[0].origin))
            raise UserError(ExitCode.DATA, problem, fix="write prompt, responses and scores")
        self.answers, self.text, self.score = found[0]
        self.columns = (self.prompt, self.answers)
        found_names = {"prompt": self.prompt, "responses": self.answers, "scores": self.answers}
        self.renames = {ours: name for ours, name in found_names.items() if ours != name}

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a question and one such list, and no other order."""
        if cls is ScoredObjects and "contents" in values:  # the question of a Gemini row, which has a system message
            return False
        return len(find_objects(values, cls.keys)) == 1 and not find_orders(values) and bool(find_prompt(values))

    def describe(self) -> str:
        """The columns and keys that were found."""
        best = "least" if self.score == RANK else "highest"
        return f"{self.title} (format {self.name}: {self.answers} by {self.score}, the {best} is best)"

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take the texts and the scores out of the objects."""
        place = f"{self.answers} %d"
        items = [
            read_object(item, place % number, (self.text, self.score))
            for number, item in enumerate(read_list(values[self.answers], self.answers), 1)
        ]
        scores = [read_number(item[self.score], f"'{self.score}' of {place % i}") for i, item in enumerate(items, 1)]
        check_preference(scores)
        scores = [-score for score in scores] if self.score == RANK else scores
        return {
            "prompt": read_prompt(values, self.prompt),
            "responses": [item[self.text] for item in items],
            "scores": scores,
        }


class UltraFeedback(ScoredObjects):
    """`instruction` and `completions`, objects with `response` and `overall_score`."""

    name, title = "ultrafeedback", "UltraFeedback completions"
    guesses = False
    keys = ("overall_score",)


def find_objects(values: Mapping[str, Any], keys: Sequence[str]) -> list[tuple[str, str, str]]:
    """The columns with a list of objects that have one text and one score: (column, key of text, key of score)."""
    found = []
    for name in match_names(values, ANSWERS):
        item = values[name][0] if isinstance(values[name], list) and values[name] else None
        texts, scores = (
            [key for key in known if isinstance(item, dict) and key in item] for known in (TEXT_KEYS, keys)
        )
        if len(texts) == len(scores) == 1:
            found.append((name, texts[0], scores[0]))
    return found
