"""Keys of a message besides role and content, and the marks that exclude a turn from the loss."""

from __future__ import annotations

import json
from typing import Any

from dpo_lightning.data.examples import TRAIN, Message, Text
from dpo_lightning.data.formats.media import INSTEAD, find_media, has_content
from dpo_lightning.data.formats.turns import NEEDS_MEDIA
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_name, excerpt_value

KEYS = frozenset(
    (
        *("role", "content", "name", "tool_calls", "tool_call_id", "tool_name", "tool_plan", "tool_responses"),
        *("reasoning_content", "reasoning", "thinking", "channel", "recipient", "citations"),
    )
)
"""Keys of a message that chat templates read."""

MARKS = ("weight", "train", "trainable", "training", "loss", "loss_mask")
"""Keys by which data sets mark whether a turn is learned; all are read as `train`."""

MARKED = f'mark it {{"{TRAIN}": false}}'
ONE_WEIGHT = 'write 0 or 1, false or true; other weights are for whole rows, in a column "weight"'


def read_mark(message: dict[str, Any], place: str) -> dict[str, Any]:
    """Replace any mark of an assistant's message by `train`, and remove the marks of other roles.

    Raises:
        RowError: a mark is neither 0 nor 1, two marks differ, a mark selects a turn of another role to be learned, or
            the message has a key that chat templates do not read.
    """
    marks = {key: _parse_mark(message[key], key, place) for key in MARKS if key in message}
    rest = {
        key: value for key, value in message.items() if key not in marks and (key in KEYS or value not in ("", [], {}))
    }
    unknown = [key for key in rest if key not in KEYS]
    for key in unknown:
        if (media := find_media(key)) and has_content(rest[key]):
            raise RowError(f"{place} needs {media}, {INSTEAD}", excerpt_value(rest[key]), NEEDS_MEDIA)
    if unknown:
        raise RowError(
            f"{place} has the unknown key '{excerpt_name(unknown[0])}'",
            json.dumps(rest[unknown[0]], ensure_ascii=False, default=str),
            f"remove the key from all messages; if it excludes a turn from the loss, {MARKED}",
        )
    if len(set(marks.values())) > 1:
        raise RowError(f"{place} has contradicting marks: {', '.join(marks)}", fix="keep one of them")
    if not marks:
        return rest
    learned = next(iter(marks.values()))
    if rest["role"] == "assistant":
        return {**rest, TRAIN: learned}
    if learned:
        what = f"{place} is a {rest['role']} message that is marked to be learned ({', '.join(marks)})"
        raise RowError(what, fix="remove the mark: only the assistant's turns can be learned")
    return rest


def _parse_mark(value: Any, key: str, place: str) -> bool:
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        raise RowError(f"{place} has a '{key}' that is neither 0 nor 1, false nor true", shown, ONE_WEIGHT)
    return bool(value)


def remove_marks(text: Text) -> Text:
    """Remove the key `TRAIN` from all messages of a text."""
    if isinstance(text, str):
        return text
    return tuple({key: value for key, value in message.items() if key != TRAIN} for message in text)


def read_context(text: Text, name: str) -> Text:
    """Remove the marks of a prompt, whose turns are never learned.

    Raises:
        RowError: a turn is marked to be learned.
    """
    for number, message in enumerate(() if isinstance(text, str) else text, 1):
        if message.get(TRAIN):
            raise RowError(
                f"{name} message {number} is marked to be learned, but a prompt is never learned",
                message.get("content") or "",
                "remove the mark, or write the conversation as `messages` for SFT",
            )
    return remove_marks(text)


def check_no_mark(text: Text, count: int, name: str) -> None:
    """Check that none of the last `count` messages, an answer that is scored as a whole, is excluded by a mark.

    Raises:
        RowError: one of them is.
    """
    for message in () if isinstance(text, str) else text[len(text) - count :]:
        if message.get(TRAIN, True) is False:
            raise RowError(
                f"{name} has a turn that is marked not to be learned, but an answer is scored as a whole",
                message.get("content") or "",
                "move the turns up to it into the prompt, or remove the mark; to skip the row, set its `weight` to 0",
            )


def read_completion(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """Check the marks of an SFT completion, and keep only those that exclude a turn.

    Raises:
        RowError: every turn of the assistant is excluded.
    """
    kept = tuple(
        message if message.get(TRAIN, True) is False else {k: v for k, v in message.items() if k != TRAIN}
        for message in messages
    )
    if not any(message["role"] == "assistant" and message.get(TRAIN, True) for message in kept):
        raise RowError(f"every turn of the assistant in {name} is marked not to be learned", fix="remove the row")
    return kept
