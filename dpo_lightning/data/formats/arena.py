"""Chatbot Arena: whole conversations with two models, and the winner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lightning.data.formats.base import Format, LeftOut, read_index, read_list
from dpo_lightning.data.formats.turns import count_common, find_role, is_messages
from dpo_lightning.data.formats.twin_columns import order_answers
from dpo_lightning.data.formats.verdicts import TIE, TIES
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import clean

WINNERS = {"model_a": 0, "model_b": 1}
FLAGS = ("winner_model_a", "winner_model_b", "winner_tie")
LISTS = ("prompt", "response_a", "response_b")


class Arena(Format):
    """`conversation_a, conversation_b, winner`; with `turn`, the winner was chosen after that many turns."""

    name, title, kind = "arena", "Chatbot Arena conversations", "pairs"
    columns = ("conversation_a", "conversation_b", "winner")
    optional = ("turn",)

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether both conversations are lists of messages."""
        return super().claims(values) and all(map(is_messages, (values[name] for name in cls.columns[:2])))

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split off the common beginning as the prompt, and order the rest by the winner."""
        winner = str(values["winner"]).strip().lower()
        if winner in TIES:
            raise LeftOut(TIE)
        if winner not in WINNERS:
            raise RowError("'winner' is neither model_a nor model_b nor a tie", values["winner"], "correct the value")
        both = [_cut_turns(values[name], values.get("turn"), name) for name in self.columns[:2]]
        cut = count_common(*both)
        if not cut or any(len(turns) == cut for turns in both):
            what = "'conversation_a' and 'conversation_b' do not begin with one question and two different answers"
            raise RowError(what, fix="remove the row")
        answers = {name: turns[cut:] for name, turns in zip(self.columns, both, strict=False)}
        return {"prompt": both[0][:cut], **order_answers(answers, self.columns[:2], WINNERS[winner])}


class ArenaTexts(Format):
    """`prompt, response_a, response_b` as JSON lists of turns, and `winner_model_a, winner_model_b, winner_tie`."""

    name, title, kind = "arena-texts", "Chatbot Arena comparisons as JSON text", "pairs"
    columns = (*LISTS, *FLAGS)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Join the turns to conversations, and order them by the winner."""
        flags = [str(values[name]).strip() for name in FLAGS]
        if sorted(flags) != ["0", "0", "1"]:
            what = "none or several of " + ", ".join(FLAGS) + " are 1"
            raise RowError(what, ", ".join(flags), "write 1 in one of them and 0 in the others")
        if flags[2] == "1":
            raise LeftOut(TIE)
        prompts, *answers = (_read_texts(values[name], name) for name in LISTS)
        if any(len(texts) != len(prompts) for texts in answers):
            raise RowError("'response_a' and 'response_b' have not one text for each of 'prompt'", fix="remove the row")
        first, second = (_join_turns(prompts, texts) for texts in answers)
        turns = {"response_a": first[1:], "response_b": second[1:]}
        return {"prompt": first[:1], **order_answers(turns, LISTS[1:], flags.index("1"))}


def _cut_turns(turns: Any, count: Any, name: str) -> list[Any]:
    """The conversation up to the answer to its question number `count`; the whole one without a count."""
    if not is_messages(turns):
        raise RowError(f"'{name}' is not a list of messages", turns, "remove the row")
    questions = [place for place, turn in enumerate(turns) if find_role(turn) == "user"]
    if count is None:
        return list(turns)
    number = read_index(count, "turn", len(questions) + 1)
    return list(turns[: questions[number]] if 0 < number < len(questions) else turns)


def _join_turns(prompts: Sequence[str], texts: Sequence[str]) -> list[dict[str, str]]:
    """A conversation of questions and answers in turn."""
    return [
        {"role": role, "content": text}
        for pair in zip(prompts, texts, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _read_texts(value: Any, name: str) -> list[str]:
    """Decode a JSON list of texts.

    Raises:
        RowError: the value is something else.
    """
    try:
        decoded = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        decoded = None
    texts = read_list(decoded, name) if decoded is not None else None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RowError(f"'{name}' is not a JSON list of texts", value, "remove the row")
    cleaned: list[str] = clean({name: texts})[0][name]  # the text of a file is checked before it is decoded
    return cleaned
