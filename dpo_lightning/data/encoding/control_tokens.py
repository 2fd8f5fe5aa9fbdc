"""Refuses control tokens in the texts of rows, or replaces them: a text could imitate another role's turn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from dpo_lightning.data.examples import Origin
from dpo_lightning.errors import ExitCode, Problem, UserError

SpecialTokens = Literal["refuse", "neutralize"]

SENTINEL = re.compile("([\ud800-\udbff][\udc00-\udfff])")
"""Two surrogates replace a neutralized control token while a template renders: valid text contains none."""

SURROGATE = re.compile("[\ud800-\udfff]")


class ControlTokens:
    """The texts that a tokenizer encodes as control tokens, and what is done where a row contains one."""

    def __init__(self, tokenizer: Any, action: SpecialTokens) -> None:
        """Read the control tokens of a tokenizer.

        Args:
            tokenizer: has them in `added_tokens_decoder`.
            action: what is done with a control token in a text.
        """
        special = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.texts = sorted(special, key=len, reverse=True)  # longest first: one may contain another
        self._starts = {text[:1] for text in self.texts}
        self._action = action

    def guard(self, value: Any, origin: Origin | None) -> Any:
        """Apply `guard_text` to all texts of a message or a tool: templates also write calls, names and schemas."""
        if isinstance(value, str):
            return self.guard_text(value, origin)
        if isinstance(value, Mapping):
            return {self.guard_text(str(key), origin): self.guard(item, origin) for key, item in value.items()}
        return [self.guard(item, origin) for item in value] if isinstance(value, (list, tuple)) else value

    def guard_text(self, text: str, origin: Origin | None) -> str:
        """Refuse control tokens in a text, or replace each by a sentinel."""
        if not text.isascii() and SURROGATE.search(text):
            raise UserError(
                ExitCode.DATA,
                Problem("a text is not valid Unicode", where=str(origin or ""), text=text),
                fix="write the text in UTF-8",
            )
        # Most texts contain none of the few characters with which control tokens begin, such as `<`.
        for start in self._starts:
            if start in text:
                return self._guard_controls(text, origin)
        return text

    def _guard_controls(self, text: str, origin: Origin | None) -> str:
        for k, control in enumerate(self.texts):
            if control not in text:
                continue
            if self._action == "refuse":
                raise UserError(
                    ExitCode.DATA,
                    Problem(f"control token {control} in a text", where=str(origin or ""), text=text),
                    fix="remove it, or --data.special_tokens neutralize to encode it as plain text",
                )
            # The two surrogates encode the index of the control token.
            text = text.replace(control, chr(0xD800 + k // 1024) + chr(0xDC00 + k % 1024))
        return text

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Split a rendered text at its sentinels.

        Yields:
            A piece to encode, and whether it is a neutralized control token.
        """
        for piece in SENTINEL.split(text):
            if SENTINEL.fullmatch(piece):
                yield self.texts[(ord(piece[0]) - 0xD800) * 1024 + ord(piece[1]) - 0xDC00], True
            elif piece:
                yield piece, False
