"""Data sets of comparisons with columns of their own: HelpSteer, SHP, Stack Exchange, comparisons of summaries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from dpo_lightning.data.formats.base import Format, LeftOut, read_index, read_list, read_object
from dpo_lightning.data.formats.twin_columns import is_number, order_answers
from dpo_lightning.data.formats.verdicts import TIE
from dpo_lightning.data.readers.bad_rows import RowError

PAIR = 2
TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)(?:\n|\Z)")
"""The beginning of a turn after the first in HelpSteer's prompts."""


class SignedPreference(Format):
    """Base of two answers with a signed strength: negative where the first is better, 0 for a tie."""

    kind = "pairs"
    answers: ClassVar[tuple[str, str]]
    strength: ClassVar[str]

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has all columns, and a number as the strength."""
        return super().claims(values) and is_number(values[cls.strength]) and "chosen" not in values

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Order the answers by the sign; the absolute value is the margin."""
        strength = values[self.strength]
        if not is_number(strength) or not math.isfinite(strength):
            raise RowError(f"'{self.strength}' is not a number", strength, "write one, or remove the row")
        if not strength:
            raise LeftOut(TIE)
        prompt = split_turns(values[self.columns[0]])
        return {"prompt": prompt, **order_answers(values, self.answers, int(strength > 0)), "margin": abs(strength)}


class HelpSteer3(SignedPreference):
    """`context, response1, response2, overall_preference`: HelpSteer3; a negative number prefers `response1`."""

    name, title = "helpsteer3", "HelpSteer3 preferences"
    columns = ("context", "response1", "response2", "overall_preference")
    renames = {"prompt": "context", "margin": "overall_preference"}  # noqa: RUF012
    answers, strength = ("response1", "response2"), "overall_preference"


class HelpSteer2Preference(SignedPreference):
    """`prompt, response_1, response_2, preference_strength`: HelpSteer2; a negative number prefers `response_1`."""

    name, title = "helpsteer2-preference", "HelpSteer2 preferences"
    columns = ("prompt", "response_1", "response_2", "preference_strength")
    renames = {"margin": "preference_strength"}  # noqa: RUF012
    answers, strength = ("response_1", "response_2"), "preference_strength"


class SHP(Format):
    """`history, human_ref_A, human_ref_B, labels`: Stanford Human Preferences; 1 prefers A."""

    name, title, kind = "shp", "Stanford Human Preferences", "pairs"
    columns = ("history", "human_ref_A", "human_ref_B", "labels")
    renames = {"prompt": "history"}  # noqa: RUF012

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Order the answers by the label."""
        label = read_index(values["labels"], "labels", 2)
        return {"prompt": values["history"], **order_answers(values, ("human_ref_B", "human_ref_A"), label)}


class StackExchange(Format):
    """`question, response_j, response_k`: the first is the better answer."""

    name, title, kind = "stack-exchange-paired", "Stack Exchange pairs", "pairs"
    columns = ("question", "response_j", "response_k")
    renames = {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}  # noqa: RUF012

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns under our names."""
        return {ours: values[name] for ours, name in self.renames.items()}


class SummaryComparisons(Format):
    """`info` (a post or an article), `summaries` (two objects with `text`) and `choice`, the index of the better."""

    name, title, kind = "summary-comparisons", "comparisons of summaries", "pairs"
    columns = ("info", "summaries", "choice")
    renames = {"prompt": "info", "chosen": "summaries", "rejected": "summaries"}  # noqa: RUF012

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the text is in an object and the summaries are a list."""
        return super().claims(values) and isinstance(values["info"], dict) and isinstance(values["summaries"], list)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the prompt as the models that wrote the summaries got it, and order the summaries."""
        info, given = read_object(values["info"], "info"), read_list(values["summaries"], "summaries")
        if len(given) != PAIR:
            raise RowError(f"'summaries' has {len(given)} items, and a comparison has two", fix="remove the row")
        texts = [read_object(item, f"summaries {number}", ("text",))["text"] for number, item in enumerate(given, 1)]
        choice = read_index(values["choice"], "choice", PAIR)
        text = info.get("post") or info.get("article")
        if not isinstance(text, str) or not text.strip():
            raise RowError("'info' has neither a post nor an article", str(info), "add one, or remove the row")
        names = (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title")) if info.get("post") else ()
        parts = [mark + str(info[key]) for mark, key in names if info.get(key)]
        parts.append("POST: " + text if info.get("post") else text)
        return {"prompt": "\n\n".join([*parts, "TL;DR:"]), "chosen": texts[choice], "rejected": texts[1 - choice]}


def split_turns(prompt: Any) -> Any:
    """HelpSteer's prompt as messages, divided at its marks of turns; messages unchanged.

    Raises:
        RowError: the turns do not alternate, or do not end with the user.
    """
    if not isinstance(prompt, str):
        return prompt
    texts = TURN.split(prompt)
    turns = [("user", texts[0]), *((texts[i].lower(), texts[i + 1]) for i in range(1, len(texts), 2))]
    if turns[-1] == ("assistant", ""):
        turns.pop()
    roles = [role for role, _ in turns]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or roles[-1] != "user":
        raise RowError("the prompt's turns do not alternate and end with the user", prompt, "remove the row")
    return [{"role": role, "content": text} for role, text in turns]
