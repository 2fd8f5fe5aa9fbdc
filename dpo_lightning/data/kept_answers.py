"""Whether a chat template writes all of an answer that is learned: what it cuts out would be missing in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.examples import Message, Origin

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which chats keep the reasoning of a turn; transformers hands all of them to templates."""

KEEP = "give a template that keeps it by --data.chat_template FILE, or take it out of the answer"


def check_kept(
    message: Message, text: str, opening: str, history: Callable[[], str], end: int, origin: Origin | None
) -> bool:
    """Refuse an answer that is learned without a part of it.

    Args:
        message: the assistant's turn that is learned, as the template was given it.
        text: the rendered conversation.
        opening: the rendering of the turns before it, up to where the model is to answer.
        history: the rendering of the turns before it alone; costs a rendering.
        end: where the turn ends in `text`.
        origin: the row.

    Returns:
        Whether the template changed white space inside a part.

    Raises:
        UserError: 65, with the row and the part that is missing.
    """
    start, respaced = common_length(opening, text), False
    for name, forms in parts(message):
        if any(text.find(form, start, end) >= 0 for form in forms):
            continue
        # An answer may begin with what the generation prompt ends with (`<think>\n`): both are one text then.
        turn = common_length(history(), text)
        if any(text.find(form, max(turn, start - len(form) + 1), end) >= 0 for form in forms):
            continue
        given, rest = squeezed(text[turn:start]), squeezed(text[start:end])
        due = [squeezed(form) for form in forms]
        if any((given + rest).find(form, max(0, len(given) - len(form) + 1)) >= 0 for form in due):
            respaced = True
            continue
        lost = missing(forms[0], text[turn:end])
        what = "the reasoning" if name in REASONING or "think" in lost.lower() else "a part"
        raise UserError(
            ExitCode.DATA,
            Problem(f"the chat template leaves out or changes {what} of an answer that is learned", str(origin), lost),
            fix=KEEP,
        )
    return respaced


def parts(message: Message) -> Iterator[tuple[str, list[str]]]:
    """What has to be in a rendered turn: the key that it comes from, and the forms in which it may stand there."""
    for key in (*REASONING, "content"):
        value = message.get(key)
        if isinstance(value, str) and value.strip():
            yield key, [value.strip()]  # outer white space is trimmed by most templates
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        for value in texts(function.get("arguments") if isinstance(function, Mapping) else None):
            yield "tool_calls", [value, *(json.dumps(value, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True))]


def texts(value: Any) -> Iterator[str]:
    """Every text within a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts(item)


def squeezed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def missing(due: str, turn: str) -> str:
    """What is left of a text without the longest end of it that is there."""
    low, high = 0, len(due)
    while low < high:  # an end of a length is there only where all shorter ones are
        middle = (low + high) // 2
        if due[middle:] in turn:
            high = middle
        else:
            low = middle + 1
    return due[:low].rstrip() or due


def common_length(left: str, right: str) -> int:
    """Length of the longest common beginning of two texts."""
    if right.startswith(left):
        return len(left)
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
