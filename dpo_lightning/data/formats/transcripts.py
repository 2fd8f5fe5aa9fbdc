"""Transcripts: conversations in one string, as `Human: ... Assistant: ...`; those of pairs with other marks as well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dpo_lightning.data.formats.base import Format
from dpo_lightning.data.formats.marked_turns import split_marked_turns
from dpo_lightning.data.formats.names import find_questions
from dpo_lightning.data.readers.bad_rows import RowError

MARKERS = {"human": "user", "user": "user", "assistant": "assistant", "ai": "assistant", "system": "system"}
MARKER = re.compile(r"(?:(?:\A|\n)\s*|(?=### ?))(### ?)?(Human|User|Assistant|AI|System):[ \t]*")
"""The beginning of a turn: the name of a role at the start of a line, or after ###."""

FIX = "write the conversation as messages, or as `prompt` and answers"


def is_transcript(value: Any) -> bool:
    """Whether a value is a string that begins with a turn of the user or the system and has one of the assistant."""
    if not isinstance(value, str) or MARKER.match(value.lstrip()) is None:
        return False
    markers = _find_markers(value.lstrip())
    roles = [MARKERS[marker[2].lower()] for marker in markers]
    return bool(roles) and markers[0].start() == 0 and roles[0] != "assistant" and "assistant" in roles


def is_conversation(value: Any) -> bool:
    """Whether a value is a transcript, or a string with other marks of turns (`Q:` and `A:`, `[INST]`, ...)."""
    return is_transcript(value) or (isinstance(value, str) and bool(split_marked_turns(value)))


def _find_markers(text: str) -> list[re.Match[str]]:
    """The beginnings of turns: a transcript names each role in one way, and only its first turn may be a system's."""
    found = list(MARKER.finditer(text))
    names: dict[str, tuple[str, bool]] = {}
    for marker in found:
        names.setdefault(MARKERS[marker[2].lower()], (marker[2], bool(marker[1])))
    return [
        marker
        for place, marker in enumerate(found)
        if names[role := MARKERS[marker[2].lower()]] == (marker[2], bool(marker[1])) and (role != "system" or not place)
    ]


def split_transcript(text: str, name: str) -> list[dict[str, str]]:
    """Split a transcript into messages; a last turn of the assistant may be empty, as at the end of a prompt.

    Raises:
        RowError: the text is no transcript, or another turn is empty.
    """
    if not is_transcript(text):
        raise RowError(f"'{name}' is not a transcript of Human: and Assistant: turns", text, FIX)
    text = text.lstrip()
    found = _find_markers(text)
    ends = [*(marker.start() for marker in found[1:]), len(text)]
    turns = [
        {"role": MARKERS[marker[2].lower()], "content": text[marker.end() : end].strip()}
        for marker, end in zip(found, ends, strict=True)
    ]
    return _check_turns(turns, text, name)


def _check_turns(turns: list[dict[str, str]], text: str, name: str) -> list[dict[str, str]]:
    for number, turn in enumerate(turns, 1):
        if not turn["content"] and (number < len(turns) or turn["role"] != "assistant"):
            raise RowError(f"turn {number} of '{name}' is empty", text, "fill in the turn, or remove the row")
    return turns


class TranscriptPairs(Format):
    """`chosen, rejected`: whole conversations as `Human: ... Assistant: ...`, `Q: ... A: ...` or rendered strings."""

    name, title, kind = "transcript-pairs", "pairs of transcripts (such as Human:/Assistant:)", "pairs"
    columns = ("chosen", "rejected")
    optional = ("prompt",)

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether both answers are transcripts; beside a question, only those of `Human:` and `Assistant:`."""
        asked = "prompt" in values or find_questions(values)
        matches = is_transcript if asked else is_conversation
        return super().claims(values) and all(matches(values[name]) for name in cls.columns)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split both conversations into messages; a `prompt` must be part of both."""
        given = values.get("prompt")
        for name in self.columns if given is not None else ():
            if not isinstance(given, str) or given.strip() not in values[name]:
                raise RowError(f"'{name}' does not contain the prompt", str(given), "remove the column 'prompt'")
        return {name: _end_with_answer(self._split(values[name], name), name) for name in self.columns}

    def _split(self, text: Any, name: str) -> list[dict[str, str]]:
        marked = [] if is_transcript(text) or not isinstance(text, str) else split_marked_turns(text)
        return _check_turns(marked, text, name) if marked else split_transcript(text, name)


class TranscriptPrompts(Format):
    """`prompt, chosen, rejected`: the prompt is a `Human: ... Assistant:` string, the answers are plain text."""

    name, title, kind = "transcript-prompts", "pairs whose prompt is a Human:/Assistant: transcript", "pairs"
    columns = ("prompt", "chosen", "rejected")

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the prompt is a transcript, and the answers are strings that are none."""
        return (
            super().claims(values)
            and is_transcript(values["prompt"])
            and all(isinstance(values[name], str) and not is_transcript(values[name]) for name in cls.columns[1:])
        )

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split the prompt into messages; the answers follow its last, empty turn."""
        answers = {name: _strip_answer(values[name]) for name in self.columns[1:]}
        return {"prompt": split_prompt(values["prompt"], "prompt"), **answers}


class TranscriptText(Format):
    """`text`: a whole conversation as a `Human: ... Assistant: ...` string, for SFT."""

    name, title, kind = "transcript-text", "Human:/Assistant: transcripts", "sft"
    columns = ("text",)

    @classmethod
    def claims(cls, values: Mapping[str, Any]) -> bool:
        """Whether the text is a transcript, and there are no other columns of SFT rows."""
        return super().claims(values) and is_transcript(values["text"]) and not values.keys() & {"messages", "prompt"}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Split the text into messages."""
        return {"messages": _end_with_answer(split_transcript(values["text"], "text"), "text")}


def split_prompt(text: str, name: str) -> list[dict[str, str]]:
    """Split a transcript that ends before the answer: its last turn is the assistant's and empty.

    Raises:
        RowError: the last turn is not empty, so that its text would be part of the answer.
    """
    turns = split_transcript(text, name)
    if turns[-1]["role"] != "assistant" or turns[-1]["content"]:
        what = f"'{name}' does not end with an empty turn of the assistant"
        raise RowError(what, text[-80:], "end it with 'Assistant:', and move what follows into both answers")
    return turns[:-1]


def _strip_answer(text: Any) -> Any:
    return text.strip() if isinstance(text, str) else text


def _end_with_answer(turns: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise RowError(f"'{name}' ends without the assistant's answer", turns[-1]["content"], "remove the row")
    return turns
