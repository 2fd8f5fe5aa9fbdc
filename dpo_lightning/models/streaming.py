"""`AnswerStream`: an answer that is written while its tokens are generated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from dpo_lightning.models.generation import decode_answers

LAST_WORD = re.compile(r"\s*\S*\Z")
"""The end of a text that later tokens may change: a word that goes on, half a character, white space before it."""


class AnswerStream(BaseStreamer):
    """Passes the text of an answer on as far as later tokens cannot change it; together it is that of `answer`."""

    def __init__(self, tokenizer: Any, write: Callable[[str], object]) -> None:
        """Start with an empty answer.

        Args:
            tokenizer: decodes the answer.
            write: gets each part of the text.
        """
        self._tokenizer, self._write = tokenizer, write
        self._ids: list[int] | None = None
        self._written = ""

    def put(self, value: Tensor) -> None:
        """Add generated tokens; the first call has the prompt."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        if not getattr(self._tokenizer, "clean_up_tokenization_spaces", False):  # which changes earlier words
            self._write_up_to(LAST_WORD.sub("", self._decode()))

    def end(self) -> None:
        """Write what is left."""
        self._write_up_to(self._decode())

    def _decode(self) -> str:
        return decode_answers(self._tokenizer, [self._ids or []])[0]

    def _write_up_to(self, text: str) -> None:
        if len(text) > len(self._written) and text.startswith(self._written):
            self._write(text[len(self._written) :])
            self._written = text
