"""Normalized texts for comparisons: without case, punctuation and repeated white space; digits and operators stay."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import NamedTuple

from dpo_lightning.data.examples import Example, Message, Text

OPERATORS = frozenset("#%&*/@\\")
"""Punctuation in Unicode's terms that changes what a text means: `C` and `C#`, `2*3` and `2/3`."""

APOSTROPHES = frozenset("'’")
"""Removed without leaving a space: `don't` equals `dont`."""

NUMERIC = str.maketrans({"-": "−", ".": "⋅", ":": "∶"})
"""Signs inside numbers, as symbols that are not punctuation."""

BEFORE_DIGIT = re.compile(r"[-.:](?=\d)|-(?=\s\d)")


class _Replacements(dict[int, str]):
    """Replacements for `str.translate`, computed when a character first occurs."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = character in OPERATORS or not unicodedata.category(character).startswith("P")
        self[code] = character if kept else "" if character in APOSTROPHES else " "
        return self[code]


_REPLACEMENTS = _Replacements()


def normalize(text: str) -> str:
    """Normalize a text: compatibility forms and case are folded, punctuation becomes white space, which is collapsed.

    A sign before a digit stays, so that `2-3`, `2*3` and `23` differ.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = BEFORE_DIGIT.sub(lambda found: found[0].translate(NUMERIC), text.casefold())
    return " ".join(text.translate(_REPLACEMENTS).split())


class Question(NamedTuple):
    """A prompt for comparisons: two prompts can only be near-duplicates if their contexts are equal."""

    context: str
    """Normalized system message, tools and all turns before the last one."""
    text: str
    """The normalized last turn."""


def make_question(example: Example) -> Question:
    """Normalize the prompt of an example."""
    tools = json.dumps(example.tools, sort_keys=True, default=str) if example.tools else ""
    prompt = example.prompt
    if isinstance(prompt, str):
        return Question(tools, normalize(prompt))
    earlier = " \n".join(f"{message['role']} {normalize(read_content(message))}" for message in prompt[:-1])
    return Question(tools + earlier, normalize(read_content(prompt[-1])) if prompt else "")


def read_content(message: Message) -> str:
    """The text of a message: its content, of a list of parts those with a text, and its tool calls as JSON."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        content = "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    written = json.dumps(calls, ensure_ascii=False, sort_keys=True, default=str) if calls else ""
    return "\n".join(filter(None, (str(content or ""), written)))


def read_plain(text: Text) -> str:
    """The text of a prompt or an answer: a string as it is, the contents of messages on lines of their own."""
    return text if isinstance(text, str) else "\n".join(map(read_content, text))
