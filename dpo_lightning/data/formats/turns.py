"""Chat messages as other tools write them: `from, value`, other names of roles, content in parts, JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from dpo_lightning.data.formats.media import INSTEAD, find_media_part
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import excerpt_value

ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "usr"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "bot", "model", "chatbot", "chatgpt", "ai", "bard", "function_call"), "assistant"
    ),
    **dict.fromkeys(("system", "systemprompt", "system_prompt"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "developer": "developer",
}
"""Names of roles in lower case -> ours."""

TEXT_PARTS = frozenset(("text", "input_text", "output_text"))
"""Types of content parts that are text."""

ANSWER_KEYS = ("content", "text", "response", "answer", "output", "completion")
"""Keys of an object that has the text of one answer."""

AS_JSON = ("[{", "[ {", "[\n", "[\r\n")
"""How a list of messages begins that was written as text."""

NEEDS_MEDIA = "remove the row; or, where its texts mean something alone, keep only these"
"""The remedy for a message with a picture, a video or sound."""

EXPORT = "write the column as JSON (`json.dumps`), or the whole table as JSON lines or parquet"


def find_role(message: Any) -> str:
    """Our name of the role of a raw message; "" if it has none that is known."""
    value = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return ROLES.get(value.strip().lower(), "") if isinstance(value, str) else ""


def is_messages(value: Any) -> bool:
    """Whether a value is a non-empty list of raw messages of known roles."""
    return isinstance(value, list) and bool(value) and all(map(find_role, value))


def unwrap_answer(value: Any) -> Any:
    """The text of an answer that is an object without a role, such as `{"text": ..., "model": ...}`.

    Any other value is returned as it is, also an object in which several keys have the text.
    """
    if not isinstance(value, dict) or "role" in value or "from" in value:
        return value
    texts = [value[key] for key in ANSWER_KEYS if isinstance(value.get(key), str)]
    return texts[0] if len(texts) == 1 else value


def count_common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The number of messages with which two conversations begin alike, up to the last of the user."""
    count = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))
    while count and find_role(first[count - 1]) not in ("user", "tool"):
        count -= 1
    return count


def has_candidates(messages: Any) -> bool:
    """Whether the last of a list of messages has several answers, as in preference rows of Bedrock."""
    return (
        isinstance(messages, list)
        and bool(messages)
        and isinstance(messages[-1], dict)
        and "candidates" in messages[-1]
    )


def read_turn(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a raw message with `role` and `content` in place of other names, and with content parts joined.

    Args:
        message: the message; unknown roles are returned unchanged.
        place: where it is, for errors.

    Raises:
        RowError: a content part is not text.
    """
    turn = dict(message)
    if "role" not in turn and "from" in turn:
        turn = {"role": turn.pop("from"), **turn}
        if "content" not in turn and "value" in turn:
            turn["content"] = turn.pop("value")
    if "content" not in turn and "parts" in turn:
        turn["content"] = turn.pop("parts")
    raw, role = turn.get("role"), find_role(turn)
    if role:
        turn["role"] = role
    if isinstance(turn.get("content"), list):
        turn["content"] = join_parts(turn["content"], place)
    if isinstance(raw, str) and raw.strip().lower() == "function_call":
        turn["tool_calls"] = _read_call(turn.pop("content", None), place)
        turn["content"] = ""
    return turn


def join_parts(parts: Sequence[Any], place: str) -> str:
    """Join the texts of content parts: strings, or objects such as `{"type": "text", "text": ...}`.

    Raises:
        RowError: a part is a picture, sound or anything else that is not text.
    """
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(part, dict) and (media := find_media_part(part)):
            raise RowError(f"{place} needs {media}, {INSTEAD}", excerpt_value(part), NEEDS_MEDIA)
        if kind not in TEXT_PARTS or not isinstance(text, str):
            what = f"{place} has a content part that is not text"
            raise RowError(what, excerpt_value(part), "keep the text parts only")
        texts.append(text)
    return "".join(texts)


def is_messages_text(value: Any) -> bool:
    """Whether a value is a string that is a list of messages, in JSON or as Python prints it."""
    try:
        return isinstance(value, str) and parse_messages_text(value, "") is not None
    except RowError:
        return True


def parse_messages_text(text: str, place: str) -> list[Any] | None:
    """Decode a text that is a list of messages in JSON; None for any other text.

    Tables of CSV and some exports write lists so.

    Raises:
        RowError: the text is a list of messages as Python prints it.
    """
    start = text.lstrip()
    if not start.startswith(AS_JSON):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if any(f"{{'{key}': " in start[:40] for key in ("role", "content", "from", "value")):
            raise RowError(f"{place} is a list of messages as Python prints it", text, EXPORT) from None
        return None
    return value if all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value) else None


def _read_call(value: Any, place: str) -> list[dict[str, Any]]:
    """Convert the JSON text of a function call to `tool_calls`."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        what = f"{place} has a function call without a name"
        raise RowError(what, excerpt_value(value), "write its name and arguments")
    return [{"type": "function", "function": call} for call in calls]
