"""Prompts and answers as people and judges read them, and what differs between two answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from dpo_lightning.data.checks.normalization import read_content
from dpo_lightning.data.examples import Text

WORD = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")
"""White space, words, and single characters of scripts without spaces."""

MOST_COMPARED = 25_000_000
"""Words of two answers, multiplied, up to which differences are marked: beyond, it takes seconds."""


class Part(NamedTuple):
    """A part of an answer, and whether the other answer lacks it."""

    text: str
    marked: bool


def as_messages(prompt: Text) -> list[dict[str, Any]]:
    """Return a prompt as chat messages; a plain text is a message of the user."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def format_prompt(prompt: Text) -> str:
    """Format a prompt as one text: a message of the user as it stands, a longer chat with the roles."""
    messages = as_messages(prompt)
    contents = [read_content(message) for message in messages]
    if len(messages) == 1 and messages[0].get("role") == "user":
        return contents[0]
    return "\n\n".join(f"{message['role']}: {text}" for message, text in zip(messages, contents, strict=True))


def mark_differences(one: str, other: str) -> tuple[list[Part], list[Part]]:
    """Split two answers into parts that both have and parts that only one has, by words (difflib).

    Long answers, with more than `MOST_COMPARED` words multiplied, are not compared: nothing of them is marked.
    """
    words = WORD.findall(one), WORD.findall(other)
    if one == other or len(words[0]) * len(words[1]) > MOST_COMPARED:
        return [Part(one, False)], [Part(other, False)]
    parts: tuple[list[Part], list[Part]] = ([], [])
    # In long answers, frequent words are no anchors (difflib's `autojunk`): a model that repeats itself writes many.
    for kind, *places in SequenceMatcher(None, *words).get_opcodes():
        for side, (start, end) in enumerate((places[:2], places[2:])):
            if end > start:
                parts[side].append(Part("".join(words[side][start:end]), kind != "equal"))
    return parts


def count_equal(answers: Sequence[Sequence[str]]) -> int:
    """Return the number of prompts on which all models gave the same answer."""
    return sum(len(set(each)) == 1 for each in zip(*answers, strict=True))
