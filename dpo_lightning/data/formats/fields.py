"""Values of a row into texts: a plain string, or checked chat messages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from dpo_lightning.data.examples import Message, Text
from dpo_lightning.data.formats.tool_calls import read_calls
from dpo_lightning.data.formats.turn_marks import read_mark, unmarked
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.invisible_characters import remove_invisible
from dpo_lightning.data.readers.sources import kind_of
from dpo_lightning.data.readers.text_cleaning import excerpt_name

ROLES = ("system", "developer", "user", "assistant", "tool")
OLDER_ROLES = {"function": "tool"}
SPOKEN = ("user", "assistant")
"""Roles that must say something; a system prompt or a tool's result may be empty."""

REMOVE = "remove the row, or write the text"
LARGEST = (2 - 2**-23) * 2.0**127
"""Of float32, in which numbers are trained with."""

VERDICTS = {
    "true": True,
    "false": False,
    "0": False,
    "1": True,
    "-1": False,
    "good": True,
    "bad": False,
    "yes": True,
    "no": False,
}
"""Labels that judge one answer by itself, and whether it is good; other labels are names of categories."""

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
        if not remove_invisible(text).strip():
            raise RowError(f"{name} is only white space", text, REMOVE)
    elif text[-1]["role"] != "assistant":
        what = f"{name} ends with a {text[-1]['role']} message, not with the assistant's"
        raise RowError(what, text[-1].get("content") or "", "add the assistant's answer, or cut the last turns")


def check_not_blank(prompt: Text, name: str) -> None:
    """An empty prompt may be meant; one of white space is not.

    Raises:
        RowError: for white space only.
    """
    if isinstance(prompt, str) and prompt and not remove_invisible(prompt).strip():
        raise RowError(f"{name} is only white space", prompt, "write a prompt, or make it empty")


def fit_answer(prompt: Text, answer: Text, name: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Prompt and answer as messages, one of which are; a repeated prompt is taken off the answer.

    Raises:
        RowError: for an answer that begins with turns of its own.
    """
    user: tuple[Message, ...] = ({"role": "user", "content": str(prompt)},) if prompt else ()
    asked = user if isinstance(prompt, str) else prompt
    if isinstance(answer, str):
        return asked, ({"role": "assistant", "content": answer},)
    spoken = tuple(message for message in asked if message["role"] not in ("system", "developer"))
    for turns in (asked, spoken):
        if turns and len(answer) > len(turns) and unmarked(answer[: len(turns)]) == turns:
            return asked, answer[len(turns) :]
    if asked and answer[0]["role"] != "assistant":
        what = f"{name} begins with a {answer[0]['role']} message that is not the prompt's"
        raise RowError(what, answer[0].get("content") or "", "begin answers with the assistant, or remove the prompt")
    return asked, answer


def look_alike_texts(one: Text, other: Text) -> bool:
    """Whether texts differ in nothing that can be seen, outer white space left aside."""
    return strip_text(one) == strip_text(other)


def strip_text(text: Text, strip: Callable[[str], str] = lambda text: remove_invisible(text).strip()) -> object:
    """A text without invisible characters and outer white space, for comparison; `strip` may remove something else."""
    if isinstance(text, str):
        return strip(text)
    return [{**message, "content": strip(message.get("content") or "")} for message in text]


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
    if not optional and message["role"] in SPOKEN and not remove_invisible(content).strip():
        what = "only white space" if content else "no text"
        raise RowError(f"{place} has {what} as content", fix=REMOVE)
