"""What a message may hold besides its role and text, and the marks that take a turn out of the loss."""

from __future__ import annotations

import json
from typing import Any

from dpo_lightning.data.examples import TRAIN, Message, Text
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_name

KEYS = frozenset(
    (
        *("role", "content", "name", "tool_calls", "tool_call_id", "tool_name", "tool_plan", "tool_responses"),
        *("reasoning_content", "reasoning", "thinking", "channel", "recipient", "citations"),
    )
)
"""Keys of a message that chat templates read."""

MARKS = ("weight", "train", "trainable", "training", "loss", "loss_mask")
"""Keys under which chats say whether a turn is learned."""

MARKED = f'mark it {{"{TRAIN}": false}}'
ONE_WEIGHT = 'write 0 or 1, false or true; other weights are for whole rows, in a column "weight"'


def read_mark(message: dict[str, Any], place: str) -> dict[str, Any]:
    """The message with `train` in place of the mark that it has, if any; turns of others need none.

    Raises:
        RowError: a mark that is neither 0 nor 1, marks that differ, another role's turn that is to be learned, or a key
            that no template reads.
    """
    marks = {key: _mark(message[key], key, place) for key in MARKS if key in message}
    rest = {
        key: value for key, value in message.items() if key not in marks and (key in KEYS or value not in ("", [], {}))
    }
    unknown = [key for key in rest if key not in KEYS]
    if unknown:
        raise RowError(
            f"{place} has the unknown key '{excerpt_name(unknown[0])}'",
            json.dumps(rest[unknown[0]], ensure_ascii=False, default=str),
            f"remove the key from all messages; where it says that a turn is not to be learned, {MARKED}",
        )
    if len(set(marks.values())) > 1:
        raise RowError(f"{place} has marks that differ: {', '.join(marks)}", fix="keep one of them")
    if not marks:
        return rest
    learned = next(iter(marks.values()))
    if rest["role"] == "assistant":
        return {**rest, TRAIN: learned}
    if learned:
        what = f"{place} is a {rest['role']} message that is marked to be learned ({', '.join(marks)})"
        raise RowError(what, fix="only the assistant's turns are learned: remove the mark")
    return rest


def _mark(value: Any, key: str, place: str) -> bool:
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        raise RowError(f"{place} has a '{key}' that is neither 0 nor 1, false nor true", shown, ONE_WEIGHT)
    return bool(value)


def unmarked(text: Text) -> Text:
    """The text without marks."""
    if isinstance(text, str):
        return text
    return tuple({key: value for key, value in message.items() if key != TRAIN} for message in text)


def read_context(text: Text, name: str) -> Text:
    """A prompt, whose turns are never learned, without its marks.

    Raises:
        RowError: a turn of it is marked to be learned.
    """
    for number, message in enumerate(() if isinstance(text, str) else text, 1):
        if message.get(TRAIN):
            raise RowError(
                f"{name} message {number} is marked to be learned, and a prompt is not learned",
                message.get("content") or "",
                "remove the mark, or write the conversation as `messages` for SFT",
            )
    return unmarked(text)


def check_scored(text: Text, count: int, name: str) -> None:
    """Make sure that none of the last `count` turns, which are an answer that is scored as a whole, is marked out.

    Raises:
        RowError: one is.
    """
    for message in () if isinstance(text, str) else text[len(text) - count :]:
        if message.get(TRAIN, True) is False:
            raise RowError(
                f"{name} has a turn that is marked not to be learned, and an answer is scored as a whole",
                message.get("content") or "",
                "move the turns before it into the prompt, or remove the mark; a row's own `weight` may be 0",
            )


def learned_turns(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """The turns of an SFT completion, those marked that are not learned.

    Raises:
        RowError: no turn of the assistant is left to learn.
    """
    kept = tuple(
        message if message.get(TRAIN, True) is False else {k: v for k, v in message.items() if k != TRAIN}
        for message in messages
    )
    if not any(message["role"] == "assistant" and message.get(TRAIN, True) for message in kept):
        raise RowError(f"every turn of the assistant in {name} is marked not to be learned", fix="remove the row")
    return kept
