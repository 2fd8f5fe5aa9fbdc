"""Converts texts to ids, many in one call, and reports tokenizers that panic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_lightning.data.encoding.word_memo import WordMemo, encodes_words
from dpo_lightning.errors import ExitCode, Problem, UserError


class TextEncoder:
    """Converts texts to the ids of a tokenizer, without the special tokens that it adds to whole texts."""

    def __init__(self, tokenizer: Any) -> None:
        """Find out how the tokenizer encodes many texts fastest.

        Args:
            tokenizer: a tokenizer of transformers; its vocabulary must not change afterwards.
        """
        self.tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer if calls_backend(tokenizer) else None
        words = self._backend is not None and encodes_words(self._backend)
        self._memo = WordMemo(self._encode_by_backend) if words else None

    def encode(self, texts: Sequence[str]) -> list[list[int] | UserError]:
        """Encode texts.

        Returns:
            The ids of each text, or an error with code 67 if the Rust code of the tokenizer panics, as with a regular
            expression that does not end.
        """
        if self._backend is None or self.tokenizer.split_special_tokens:
            return [self.encode_alone(text) for text in texts]
        try:
            return [*(self._memo.encode(texts) if self._memo else self._encode_by_backend(texts))]
        except BaseException as error:
            if not is_panic(error):
                raise
            return [self.encode_alone(text) for text in texts]  # to find the text

    def encode_alone(self, text: str, **options: Any) -> list[int] | UserError:
        """Encode one text by a call of the tokenizer, with options for it; returns what `encode` does for each."""
        try:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        except BaseException as error:
            if not is_panic(error):
                raise
            problem = Problem(f"the tokenizer fails: {error}", str(getattr(self.tokenizer, "name_or_path", "")), text)
            return UserError(ExitCode.MODEL, problem, fix="use another tokenizer")
        return ids

    def _encode_by_backend(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as a call of the tokenizer does, without offsets and masks, which take a third of the time."""
        backend = self._backend
        # Options of an earlier call of the tokenizer, which every call sets anew.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def calls_backend(tokenizer: Any) -> bool:
    """Whether a call of the tokenizer does no more than call `tokenizers`, as no subclass has a method of its own."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return False
    return all(
        next(base for base in type(tokenizer).__mro__ if name in vars(base)).__module__.startswith(
            "transformers.tokenization_utils_"
        )
        for name in ("__call__", "_encode_plus")
    )


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of Rust code, whose class derives from BaseException and is exported by no module."""
    return type(error).__name__ == "PanicException"
