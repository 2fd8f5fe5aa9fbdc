"""Checks that a chat template writes every part of a conversation: a part that it omits would not be learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dpo_lightning.data.common_prefix import count_common
from dpo_lightning.data.examples import Message, Origin
from dpo_lightning.data.readers.invisible_characters import iterate_texts
from dpo_lightning.errors import ExitCode, Problem, UserError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that may contain its reasoning; transformers passes all of them to templates."""

REASONED = re.compile(r"</\w*think\w*>|</thought>|</reasoning>|</seed:think>|\[/THINK\]|◁/think▷")
"""The markers at the end of a reasoning, as models write them."""

ADDRESS = re.compile(r"<[\w.' -]+ at 0x[0-9a-f]+>")
"""What Python writes for an object without a text of its own, such as a generator or a method."""

KEEP = "give a template that keeps it by --data.chat_template FILE, or remove it from the answer"


def check_rendering(messages: Sequence[dict[str, Any]], tools: Sequence[Any], text: str, origin: Origin | None) -> None:
    """Check that a rendered conversation contains each turn and the name of each tool and tool call.

    A template may omit what it has no code for, such as a system message. The reasoning at the beginning of a turn
    may be missing: some templates remove it from earlier turns on purpose.

    Args:
        messages: the conversation as the template received it.
        tools: the schemas of tools.
        text: the rendered conversation.
        origin: the row, None for a prompt of `infer`.

    Raises:
        UserError: 67 if a part is missing, or the text contains an address in memory.
    """
    wanted = [("a tool", get_tool_name(tool)) for tool in tools]
    for message in messages:
        content = message.get("content")
        # A turn that is there as it is needs no further look, which saves the search for its reasoning.
        if isinstance(content, str) and content.strip() not in text:
            wanted.append((f"a turn of the {message['role']}", REASONED.split(content)[-1].strip()))
        wanted += [("a tool call", get_tool_name(call)) for call in message.get("tool_calls") or ()]
    # Searching for the substring first is several times faster than the regular expression.
    address = ADDRESS.search(text) if " at 0x" in text else None
    if address and not any(address[0] in value for value in iterate_texts([*messages, *tools])):
        raise UserError(
            ExitCode.MODEL,
            Problem("the chat template writes an address in memory, which differs in each run", text=address[0]),
            fix="add the missing `| join` or the brackets after a method, and give it by --data.chat_template FILE",
        )
    for what, due in wanted:
        if due not in text:
            raise omission_error(what, due, origin)


def omission_error(what: str, due: str, origin: Origin | None) -> UserError:
    """Return the error for a template that omits a part of a conversation.

    Args:
        what: what kind of part it is.
        due: its text.
        origin: the row.
    """
    return UserError(
        ExitCode.MODEL,
        Problem(f"the chat template omits or changes {what}", where=str(origin or ""), text=due),
        fix="give a template that keeps it by --data.chat_template FILE",
    )


def check_kept(
    message: Message, text: str, opening: str, history: Callable[[], str], end: int, origin: Origin | None
) -> bool:
    """Check that a learned turn contains every part of its message.

    Args:
        message: the assistant's turn as the template received it.
        text: the rendered conversation.
        opening: the rendered turns before it with the generation prompt: the model answers after it.
        history: renders the turns before it without the generation prompt; called only if a part is not found.
        end: the index in `text` where the turn ends.
        origin: the row.

    Returns:
        Whether the template changed white space inside a part.

    Raises:
        UserError: 65 with the row and the missing text.
    """
    start, respaced = count_common(opening, text), False
    for name, forms in list_parts(message):
        if any(text.find(form, start, end) >= 0 for form in forms):
            continue
        # An answer may begin with the end of the generation prompt (`<think>\n`), which is written once: a part may
        # then begin before `start`, but not before the turn.
        turn = count_common(history(), text)
        if any(text.find(form, max(turn, start - len(form) + 1), end) >= 0 for form in forms):
            continue
        # The same search without white space.
        given, rest = remove_white_space(text[turn:start]), remove_white_space(text[start:end])
        due = [remove_white_space(form) for form in forms]
        if any((given + rest).find(form, max(0, len(given) - len(form) + 1)) >= 0 for form in due):
            respaced = True
            continue
        lost = find_missing(forms[0], text[turn:end])
        what = "the reasoning" if name in REASONING or "think" in lost.lower() else "a part"
        what = "a tool call" if name == "tool_calls" else what
        raise UserError(
            ExitCode.DATA,
            Problem(f"the chat template omits or changes {what} of a learned answer", str(origin), lost),
            fix=KEEP,
        )
    return respaced


def list_parts(message: Message) -> Iterator[tuple[str, list[str]]]:
    """List the texts that a rendered turn has to contain.

    Yields:
        The key of the message that a part comes from, and the forms in which a template may write it.
    """
    for key in (*REASONING, "content"):
        value = message.get(key) or ""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if text.strip():
            yield key, [text.strip()]  # most templates remove white space at both ends
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        if name := get_tool_name(call):
            yield "tool_calls", [name]
        for value in iterate_texts(function.get("arguments") if isinstance(function, Mapping) else None):
            # As plain text, or within JSON, whose quotes and other letters may be escaped.
            yield "tool_calls", [value, *(json.dumps(value, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True))]


def remove_white_space(text: str) -> str:
    """Remove spaces, tabs and line ends, inner ones included."""
    return "".join(text.split())


def find_missing(due: str, turn: str) -> str:
    """Return `due` without the longest end of it that `turn` contains, for an error; no word is split.

    Templates that cut out the reasoning keep the end of an answer.
    """
    low, high = 0, len(due)
    while low < high:  # bisection: if an end is contained, so is every shorter one
        middle = (low + high) // 2
        if due[middle:] in turn:
            high = middle
        else:
            low = middle + 1
    while 0 < low < len(due) and due[low - 1 : low + 1].isalnum():
        low += 1
    return due[:low].rstrip() or due


def get_tool_name(tool: Any) -> str:
    """Return the name in a tool's schema or in a call, with or without the `function` around it; empty if none."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""
