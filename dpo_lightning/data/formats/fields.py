"""Values of a row into texts: a plain string, or checked chat messages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dpo_lightning.data.examples import Message, Text
from dpo_lightning.data.formats.tool_calls import read_calls
from dpo_lightning.data.formats.turn_marks import read_mark
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.invisible_characters import visible
from dpo_lightning.data.readers.sources import kind_of
from dpo_lightning.data.readers.text_cleaning import excerpt_name

ROLES = ("system", "developer", "user", "assistant", "tool")
OLDER_ROLES = {"function": "tool"}
SPOKEN = ("user", "assistant")
"""Roles that must say something; a system prompt or a tool's result may be empty."""

REMOVE = "remove the row, or write the text"
LARGEST = (2 - 2**-23) * 2.0**127
"""Of float32, in which numbers are trained with."""

TURN = 'write each message as {"role": ..., "content": ...}'


def parse_text(value: Any, name: str) -> Text:
    """A string as it is, or a list of messages as a checked tuple.

    Raises:
        RowError: for any other kind of value, or a message that is none.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return tuple(_message(item, f"{name} message {number}") for number, item in enumerate(value, 1))
    if value is None:
        raise RowError(f"{name} is null", fix=REMOVE)
    shown = "" if isinstance(value, dict) else value
    raise RowError(f"{name} is {kind_of(value)} where text or a list of messages is due", shown, "write it as text")


def check_answer(text: Text, name: str) -> None:
    """Make sure that an answer says something, and that a conversation ends with the assistant.

    Raises:
        RowError: for an empty or blank answer, or another last turn.
    """
    if not text:
        raise RowError(f"{name} is empty", fix=REMOVE)
    if isinstance(text, str):
        if not visible(text).strip():
            raise RowError(f"{name} is only white space", text, REMOVE)
    elif text[-1]["role"] != "assistant":
        what = f"{name} ends with a {text[-1]['role']} message, not with the assistant's"
        raise RowError(what, text[-1].get("content") or "", "add the assistant's answer, or cut the last turns")


def parse_group(value: Any) -> str:
    """The `group` of a row; a number is read as its digits, null as none.

    Raises:
        RowError: for a value of another kind.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(f"group is {kind_of(value)} where text is due", fix="write a name, or remove the column")
    return str(value)


def parse_weight(values: Mapping[str, Any], columns: Mapping[str, str]) -> float:
    """The `weight` of a row, how much it counts: 1 where it does not say.

    Raises:
        RowError: for a negative number, or none.
    """
    if "weight" not in values:
        return 1.0
    shown = f"'{columns.get('weight', 'weight')}'"
    weight = parse_number(values["weight"], shown)
    if weight < 0:
        raise RowError(f"{shown} is negative", str(weight), "write 0 or more; 0 leaves the row out")
    return weight


def check_asked(prompt: Text, name: str) -> None:
    """Make sure that a conversation has a turn before the answer.

    Raises:
        RowError: it has none, and chat templates render no empty conversation.
    """
    if not isinstance(prompt, str) and not prompt:
        raise RowError(f"nothing comes before {name}", fix="write the user's turn before it, or remove the row")


def parse_number(value: Any, name: str) -> float:
    """A number that is finite in float32, or text that is one.

    Raises:
        RowError: for anything else; null is no number.
    """
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = value if isinstance(value, str) else kind_of(value)
        raise RowError(f"{name} is no finite number", shown, "write a number, or remove the column")
    if abs(number) > LARGEST:
        raise RowError(f"{name} is too large a number", str(value), "write one that float32 holds, below 3.4e38")
    return number


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{place} is {kind_of(value)} where an object is due", "", TURN)
    if "role" not in value:
        raise RowError(f"{place} has no role", "keys: " + ", ".join(map(str, value)), TURN)
    role = OLDER_ROLES.get(value["role"], value["role"]) if isinstance(value["role"], str) else value["role"]
    if role not in ROLES:
        fix = "use one of " + ", ".join(ROLES)
        raise RowError(f"{place} has the unknown role {excerpt_name(json.dumps(role, default=str))}", "", fix)
    # Arrow writes null for an absent key, and some templates ask only whether a key is there.
    message = {key: item for key, item in value.items() if item is not None or key == "content"}
    message = read_mark(read_calls({**message, "role": role}, place), place)
    _check_content(message, place, optional=bool(message.get("tool_calls")))
    return message


def _check_content(message: Message, place: str, *, optional: bool) -> None:
    content = message.get("content")
    if content is None:
        if optional:
            return
        raise RowError(f"{place} has no content", fix=TURN)
    if not isinstance(content, str):
        raise RowError(f"{place} has {kind_of(content)} as content", fix="write the content as text")
    if not optional and message["role"] in SPOKEN and not visible(content).strip():
        what = "only white space" if content else "no text"
        raise RowError(f"{place} has {what} as content", fix=REMOVE)
