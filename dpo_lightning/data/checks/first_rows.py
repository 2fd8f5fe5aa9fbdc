"""The first rows as they are trained: the texts by role, or the decoded tokens, and which parts are scored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dpo_lightning.data.checks.lengths import name_answers
from dpo_lightning.data.checks.normalization import read_content
from dpo_lightning.data.examples import TRAIN, Encoded, EncodedAnswer, Example, Text

SHOWN = 3
"""Rows that are shown."""


@dataclass
class Piece:
    """A part of a text, and whether it is scored."""

    text: str
    scored: bool = False


@dataclass
class ShownText:
    """A text of a row: its name (`prompt`, `chosen`, or a role) and its pieces."""

    name: str
    pieces: list[Piece]


@dataclass
class ShownRow:
    """A row as it is trained: its place, its texts, and its label or weight where it has one."""

    where: str
    texts: list[ShownText]
    label: bool | None = None
    weight: float = 1.0


def show_texts(kind: str, example: Example) -> ShownRow:
    """Show a row as texts by role."""
    texts = list(_show_prompt(example))
    for name, answer in zip(name_answers(kind, example), example.answers, strict=True):
        texts.append(ShownText(name, list(_show_answer(answer))))
    return ShownRow(str(example.origin), texts, getattr(example, "good", None), example.weight)


def _show_prompt(example: Example) -> Iterator[ShownText]:
    if example.tools:
        yield ShownText("tools", [Piece(json.dumps(example.tools, ensure_ascii=False, default=str))])
    if isinstance(example.prompt, str):
        yield ShownText("prompt", [Piece(example.prompt)])
        return
    for message in example.prompt:
        yield ShownText(str(message["role"]), [Piece(read_content(message))])


def _show_answer(answer: Text) -> Iterator[Piece]:
    if isinstance(answer, str):
        yield Piece(answer, scored=True)
        return
    for i, message in enumerate(answer):
        scored = message["role"] == "assistant" and bool(message.get(TRAIN, True))
        named = "" if len(answer) == 1 else f"{' ' if i else ''}[{message['role']}] "
        yield Piece(named + read_content(message), scored)


def show_tokens(kind: str, example: Example, encoded: Encoded, tokenizer: Any) -> ShownRow:
    """Show a row as decoded tokens; those of an answer in runs that are scored or not."""
    texts = [ShownText("prompt", [Piece(tokenizer.decode(list(encoded.prompt_ids)))])]
    for name, answer in zip(name_answers(kind, example), encoded.answers, strict=False):
        texts.append(ShownText(name, list(_decode_runs(answer, tokenizer))))
    return ShownRow(str(example.origin), texts, getattr(example, "good", None), example.weight)


def _decode_runs(answer: EncodedAnswer, tokenizer: Any) -> Iterator[Piece]:
    for scored, run in groupby(zip(answer.ids, answer.scored, strict=True), key=lambda token: bool(token[1])):
        yield Piece(tokenizer.decode([id_ for id_, _ in run]), scored)
