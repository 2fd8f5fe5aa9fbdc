"""This package's own formats, one for each kind of rows; TRL's rows have the same columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.names import JUDGEMENTS, RANKS, SCORES, find_questions, match_names, normalize_label
from dpo_lightning.data.formats.scored_lists import ORDER
from dpo_lightning.data.formats.scored_objects import SCORE_KEYS, find_objects
from dpo_lightning.data.formats.transcripts import is_conversation, is_transcript
from dpo_lightning.data.formats.turns import has_candidates, is_messages
from dpo_lightning.data.formats.twin_columns import find_answers

ANSWERS = ("chosen", "rejected")


class OwnFormat(Format):
    """Base of the formats whose rows need no conversion."""

    columns = ()

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return no columns: all of them keep their names."""
        return {}


class Pairs(OwnFormat):
    """`prompt, chosen, rejected` as strings or messages; without `prompt`, both answers begin with it."""

    name, title, kind = "pairs", "preference pairs", "pairs"

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has both answers, and its question in `prompt` or before the answers."""
        if "chosen" not in values or "rejected" not in values or "completion" in values or _points_to_answers(values):
            return False
        if "prompt" in values:
            return not is_transcript(values["prompt"]) and not is_transcript(values["chosen"])
        if is_messages(values["chosen"]) and len(values["chosen"]) > 1:
            return True
        return not find_questions(values) and not is_conversation(values["chosen"])


def _points_to_answers(values: Mapping[str, Any]) -> bool:
    """Whether both `chosen` and `rejected` are letters or numbers, and the answers are in twin columns."""
    short = (isinstance(values[name], (str, int)) and len(str(values[name]).strip()) == 1 for name in ANSWERS)
    return all(short) and bool(find_answers(values))


class Ranked(OwnFormat):
    """`prompt, responses`: a list of answers, the best first, or ordered by `scores`."""

    name, title, kind = "ranked", "ranked lists", "ranked"

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has a prompt and answers, and no column that orders them under another name."""
        if (
            not {"prompt", "responses"} <= values.keys()
            or find_objects(values, SCORE_KEYS)
            or isinstance(values.get(ORDER), list)
        ):
            return False
        return not match_names(values, (SCORES | RANKS) - {"scores"})


class Unpaired(OwnFormat):
    """`prompt, completion, label` as strings or messages: each answer is good or bad."""

    name, title, kind = "unpaired", "unpaired rows", "unpaired"

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has all three columns, and its label judges the answer."""
        return {"prompt", "completion", "label"} <= values.keys() and normalize_label(values["label"]) in JUDGEMENTS


class SFT(OwnFormat):
    """`prompt, completion`, `messages`, or `instruction, input, output`."""

    name, title, kind = "sft", "SFT rows", "sft"

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether a row has all columns of one of the three layouts; Bedrock's rows have a format of their own."""
        if "messages" in values and (isinstance(values.get("system"), list) or has_candidates(values["messages"])):
            return False
        layouts = ({"prompt", "completion"}, {"messages"}, {"instruction", "output"})
        return any(layout <= values.keys() for layout in layouts)
