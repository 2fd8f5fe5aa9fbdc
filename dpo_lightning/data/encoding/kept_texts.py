"""Whether a chat template writes all that it is given: what it leaves out would not be learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dpo_lightning.data.examples import Message, Origin
from dpo_lightning.data.readers.invisible_characters import iterate_texts
from dpo_lightning.errors import ExitCode, Problem, UserError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which chats keep the reasoning of a turn; transformers hands all of them to templates."""

REASONED = re.compile(r"</\w*think\w*>|</thought>|</reasoning>|</seed:think>|\[/THINK\]|◁/think▷")
"""The ends of a reasoning, as models write them."""

ADDRESS = re.compile(r"<[\w.' -]+ at 0x[0-9a-f]+>")
"""What Python writes for an object that has no text of its own."""

KEEP = "give a template that keeps it by --data.chat_template FILE, or take it out of the answer"


def check_rendering(messages: Sequence[dict[str, Any]], tools: Sequence[Any], text: str, origin: Origin | None) -> None:
    """A template may drop what it does not know. Reasoning of earlier turns is dropped on purpose by some."""
    wanted = [("a tool", name_of(tool)) for tool in tools]
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and content.strip() not in text:
            wanted.append((f"a turn of the {message['role']}", REASONED.split(content)[-1].strip()))
        wanted += [("a tool call", name_of(call)) for call in message.get("tool_calls") or ()]
    address = ADDRESS.search(text) if " at 0x" in text else None
    if address and not any(address[0] in value for value in iterate_texts([*messages, *tools])):
        raise UserError(
            ExitCode.MODEL,
            Problem("the chat template writes an address in memory, another in each run", text=address[0]),
            fix="--data.chat_template with one that does not (it lacks a `| join`, or brackets after a method)",
        )
    for what, due in wanted:
        if due not in text:
            raise left_out(what, due, origin)


def left_out(what: str, due: str, origin: Origin | None) -> UserError:
    """The error for a template that does not write a part of a conversation."""
    return UserError(
        ExitCode.MODEL,
        Problem(f"the chat template leaves out or changes {what}", where=str(origin or ""), text=due),
        fix="give a template that keeps it by --data.chat_template FILE",
    )


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
        what = "a tool call" if name == "tool_calls" else what
        raise UserError(
            ExitCode.DATA,
            Problem(f"the chat template leaves out or changes {what} of an answer that is learned", str(origin), lost),
            fix=KEEP,
        )
    return respaced


def parts(message: Message) -> Iterator[tuple[str, list[str]]]:
    """What has to be in a rendered turn: the key that it comes from, and the forms in which it may stand there."""
    for key in (*REASONING, "content"):
        value = message.get(key) or ""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if text.strip():
            yield key, [text.strip()]  # outer white space is trimmed by most templates
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        if name := name_of(call):
            yield "tool_calls", [name]
        for value in iterate_texts(function.get("arguments") if isinstance(function, Mapping) else None):
            yield "tool_calls", [value, *(json.dumps(value, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True))]


def squeezed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def missing(due: str, turn: str) -> str:
    """What is left of a text without the longest end of it that is there; no word is cut."""
    low, high = 0, len(due)
    while low < high:  # an end of a length is there only where all shorter ones are
        middle = (low + high) // 2
        if due[middle:] in turn:
            high = middle
        else:
            low = middle + 1
    while 0 < low < len(due) and due[low - 1 : low + 1].isalnum():
        low += 1
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


def name_of(tool: Any) -> str:
    """The name in a tool's schema or in a call, with or without the `function` around it."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""
