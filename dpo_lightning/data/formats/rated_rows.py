"""Answers in columns or rows of their own: KoChatGPT's `completion_0, completion_1, ...`, HelpSteer's rated rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.preference_sets import split_turns
from dpo_lightning.data.formats.scored_lists import ALL_EQUAL, OrderedLists, join_answers, read_number, read_numbers
from dpo_lightning.data.readers.bad_rows import BadRows, Notes, RowError
from dpo_lightning.data.readers.sources import Row

COMPLETION = re.compile(r"completion_\d+")
LEAST = 2
SINGLE = "prompts with a single rated answer"


class KoChatGPT(OrderedLists):
    """`prompt, completion_0, completion_1, ...` and `ranking`, which has the rank of each; the least is best."""

    name, title = "kochatgpt", "KoChatGPT rankings"
    columns = ("prompt", "ranking")
    renames = {"scores": "ranking"}  # noqa: RUF012

    def __init__(self, rows: Sequence[Row]) -> None:
        """Find the columns of completions of all rows."""
        super().__init__(rows)
        names = {name for row in rows for name in row.values if COMPLETION.fullmatch(name)}
        self.optional = tuple(sorted(names, key=lambda name: int(name.rpartition("_")[2])))

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has the first two completions, and a list as the ranking."""
        columns = (*cls.columns, "completion_0", "completion_1")
        return all(name in values for name in columns) and isinstance(values["ranking"], list)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Collect the completions that the row has."""
        answers = [values[name] for name in self.optional if values.get(name) is not None]
        ranks = read_numbers(values["ranking"], "ranking", len(answers))
        return {"prompt": values["prompt"], "responses": answers, "scores": [-rank for rank in ranks]}


class HelpSteerRatings(Format):
    """`prompt, response, helpfulness, ...`: adjacent rows of a prompt become a list, ordered by helpfulness."""

    name, title, kind = "helpsteer", "HelpSteer ratings", "ranked"
    columns = ("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity")
    renames = {"responses": "response", "scores": "helpfulness"}  # noqa: RUF012

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert the prompt, and check the rating."""
        if not isinstance(values["response"], str):
            raise RowError("'response' is not text", values["response"], "write it as text, or remove the row")
        rating = read_number(values["helpfulness"], "'helpfulness'")
        return {"prompt": split_turns(values["prompt"]), "responses": values["response"], "scores": rating}

    def convert_rows(self, rows: Iterable[Row], bad: BadRows, notes: Notes) -> Iterator[Row]:
        """Join adjacent rows of the same prompt."""
        for _, group in groupby(super().convert_rows(rows, bad, notes), key=lambda row: row.values["prompt"]):
            found = list(group)
            scores = [row.values["scores"] for row in found]
            if len({*scores}) < LEAST:
                reason = ALL_EQUAL if len(found) > 1 else SINGLE
                notes.add(found[0].origin, reason, fix="remove the rows, or leave out --data.strict")
                continue
            answers = [row.values["responses"] for row in found]
            yield join_answers(found[0], answers, scores, notes)
