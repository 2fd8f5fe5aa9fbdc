"""Pairs as ranked lists of two answers, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.formats.names import find_questions
from dpo_lightning.data.formats.turns import count_common
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import decode_json

PAIR = 2

OWN_COLUMN = 'write the prompt into a column `prompt` ("" where there is none), or the conversations as messages'
"""The remedy for answers without a prompt."""


def convert_kind(values: Mapping[str, Any], source: KindName, target: KindName) -> dict[str, Any]:
    """Convert the columns of a row from one kind to another; the unpaired kind splits pairs itself.

    Raises:
        RowError: a list that is to become a pair has not two answers, or a pair that is to become a list no prompt.
    """
    if (source, target) == ("pairs", "ranked"):
        rest = {name: value for name, value in values.items() if name not in ("chosen", "rejected")}
        chosen, rejected = values.get("chosen"), values.get("rejected")
        if "prompt" not in values and isinstance(chosen, list) and isinstance(rejected, list):
            cut = count_common(chosen, rejected)
            rest["prompt"], chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        elif "prompt" not in values and isinstance(chosen, str) and not find_questions(values):
            raise RowError("the pair has no prompt, and a ranked list has one", str(chosen), OWN_COLUMN)
        return {**rest, "responses": [chosen, rejected]}
    if (source, target) != ("ranked", "pairs"):
        return dict(values)
    answers, scores = (decode_json(values.get(name), f"'{name}'", "write a list") for name in ("responses", "scores"))
    if not isinstance(answers, list) or len(answers) != PAIR:
        found = len(answers) if isinstance(answers, list) else "no"
        fix = "--config configs/dpo-listwise.yaml takes lists; for pairs, keep two answers"
        raise RowError(f"the row has {found} answers, and a pair has two", fix=fix)
    if scores is not None:
        if not isinstance(scores, list) or len(scores) != PAIR or not all(isinstance(x, (int, float)) for x in scores):
            raise RowError("'scores' is not a list of two numbers", str(scores), "write a number for each answer")
        if scores[0] == scores[1]:
            raise RowError(f"both answers have the score {scores[0]:g}", fix="remove the row")
        answers = answers if scores[0] > scores[1] else answers[::-1]
    rest = {name: value for name, value in values.items() if name not in ("responses", "scores")}
    return {**rest, "chosen": answers[0], "rejected": answers[1]}
