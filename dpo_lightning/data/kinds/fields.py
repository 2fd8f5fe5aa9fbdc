"""Parsing and checks of single values of a row: texts and messages, numbers, weights, groups."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from dpo_lightning.data.examples import Message, Text
from dpo_lightning.data.formats.turns import parse_messages_text, read_turn
from dpo_lightning.data.kinds.tool_calls import read_calls
from dpo_lightning.data.kinds.turn_marks import read_mark, remove_marks
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.invisible_characters import remove_invisible
from dpo_lightning.data.readers.sources import kind_of
from dpo_lightning.data.readers.text_cleaning import excerpt_name

ROLES = ("system", "developer", "user", "assistant", "tool")
SPOKEN = ("user", "assistant")
"""Roles whose messages must not be empty; a system prompt or the result of a tool may be."""

REMOVE = "remove the row, or fill in the text"
LARGEST = (2 - 2**-23) * 2.0**127
"""The largest finite float32: weights, margins and scores are float32 in training."""

TURN = 'write each message as {"role": ..., "content": ...}'


def parse_text(value: Any, name: str, *, decode: bool = False) -> Text:
    """Return a string unchanged, or a list of messages as a checked tuple.

    Args:
        value: the value of a column.
        name: the column, for errors.
        decode: convert a string that is a list of messages in JSON.

    Raises:
        RowError: the value is of another type, or a message is malformed.
    """
    if isinstance(value, str):
        decoded = parse_messages_text(value, name) if decode else None
        if decoded is None:
            return value
        value = decoded
    elif isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if isinstance(value, list):
        return tuple(_message(item, f"{name} message {number}") for number, item in enumerate(value, 1))
    if value is None:
        raise RowError(f"{name} is null", fix=REMOVE)
    shown = "" if isinstance(value, dict) else value
    raise RowError(f"{name} is {kind_of(value)}, not text or a list of messages", shown, "write it as text")


def check_answer(text: Text, name: str) -> None:
    """Check that an answer is not blank, and that an answer of messages ends with the assistant.

    Raises:
        RowError: that is not so.
    """
    if not text:
        raise RowError(f"{name} is empty", fix=REMOVE)
    if isinstance(text, str):
        if not remove_invisible(text).strip():
            raise RowError(f"{name} is only white space", text, REMOVE)
    elif text[-1]["role"] != "assistant":
        what = f"{name} ends with a {text[-1]['role']} message, not with the assistant's"
        raise RowError(what, text[-1].get("content") or "", "add the assistant's answer, or cut the last turns")


def check_not_blank(prompt: Text, name: str) -> None:
    """Check that a prompt does not consist of white space. An empty one is accepted: it may be intended.

    Raises:
        RowError: that is not so.
    """
    if isinstance(prompt, str) and prompt and not remove_invisible(prompt).strip():
        raise RowError(f"{name} is only white space", prompt, "write a prompt, or make it empty")


def fit_answer(prompt: Text, answer: Text, name: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Convert prompt and answer to messages; an answer that begins with the prompt's turns loses them.

    At least one of the two is a list of messages already. An answer may repeat the prompt with or without its system
    message.

    Raises:
        RowError: the answer begins with a turn that is neither the prompt's nor the assistant's.
    """
    user: tuple[Message, ...] = ({"role": "user", "content": str(prompt)},) if prompt else ()
    context = user if isinstance(prompt, str) else prompt
    if isinstance(answer, str):
        return context, ({"role": "assistant", "content": answer},)
    spoken = tuple(message for message in context if message["role"] not in ("system", "developer"))
    for turns in (context, spoken):
        if turns and len(answer) > len(turns) and remove_marks(answer[: len(turns)]) == turns:
            return context, answer[len(turns) :]
    if context and answer[0]["role"] != "assistant":
        what = f"{name} begins with a {answer[0]['role']} message that is not the prompt's"
        raise RowError(
            what,
            answer[0].get("content") or "",
            "begin answers with the assistant; or, if they are whole conversations, --data.ignore_columns prompt",
        )
    return context, answer


def look_alike_texts(one: Text, other: Text) -> bool:
    """Whether two texts differ only in invisible characters and outer white space."""
    return strip_text(one) == strip_text(other)


def strip_text(text: Text, strip: Callable[[str], str] = lambda text: remove_invisible(text).strip()) -> object:
    """Remove invisible characters and outer white space for a comparison, or whatever `strip` removes."""
    if isinstance(text, str):
        return strip(text)
    return [{**message, "content": strip(message.get("content") or "")} for message in text]


def parse_group(value: Any) -> str:
    """Parse the `group` of a row: a name, or an integer, which becomes text; "" for null.

    Raises:
        RowError: the value is of another type.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"group is {kind_of(value)}, not text", fix="write a name, or remove the column")
    return str(value)


def parse_weight(values: Mapping[str, Any], columns: Mapping[str, str]) -> float:
    """Parse the `weight` of a row, the factor of its loss; 1 where the column is missing.

    Raises:
        RowError: the value is negative, or not a finite number.
    """
    if "weight" not in values:
        return 1.0
    shown = f"'{columns.get('weight', 'weight')}'"
    weight = parse_number(values["weight"], shown)
    if weight < 0:
        raise RowError(f"{shown} is negative", str(weight), "write 0 or more; 0 leaves the row out")
    return weight


def check_has_prompt(prompt: Text, name: str) -> None:
    """Check that a conversation has a turn before the answer: a chat template cannot render an empty list.

    Raises:
        RowError: that is not so.
    """
    if not isinstance(prompt, str) and not prompt:
        raise RowError(f"there is no turn before {name}", fix="write the user's turn before it, or remove the row")


def parse_number(value: Any, name: str) -> float:
    """Parse a number, or the text of one, that is finite in float32.

    Raises:
        RowError: for anything else, null included.
    """
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = value if isinstance(value, str) else kind_of(value)
        raise RowError(f"{name} is not a finite number", shown, "write a number, or remove the column")
    if abs(number) > LARGEST:
        raise RowError(f"{name} is too large for float32", str(value), "write a number below 3.4e38")
    return number


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{place} is {kind_of(value)}, not an object", "", TURN)
    # Arrow writes null for an absent key, and some templates test only whether a key is present.
    message = {key: item for key, item in value.items() if item is not None or key in ("role", "content")}
    message = read_turn(message, place)
    if "role" not in message:
        raise RowError(f"{place} has no role", "keys: " + ", ".join(map(str, value)), TURN)
    role = message["role"]
    if role not in ROLES:
        fix = "use one of " + ", ".join(ROLES)
        raise RowError(f"{place} has the unknown role {excerpt_name(json.dumps(role, default=str))}", "", fix)
    message = read_mark(read_calls(message, place), place)
    _check_content(message, place, optional=bool(message.get("tool_calls")))
    return message


def _check_content(message: Message, place: str, *, optional: bool) -> None:
    content = message.get("content")
    if content is None:
        if optional:
            return
        raise RowError(f"{place} has no content", fix=TURN)
    if not isinstance(content, str):
        raise RowError(f"{place} has {kind_of(content)} as content, not text", fix="write the content as text")
    if not optional and message["role"] in SPOKEN and not remove_invisible(content).strip():
        what = "only white space" if content else "no text"
        raise RowError(f"{place} has {what} as content", fix=REMOVE)
