"""Memo of the ids of words, for tokenizers that are known to encode the words of a text independently of each other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

WORD_BREAK = re.compile(r" (?<=\S )")
"""Where texts are divided into words: before a space that follows a character other than white space."""

OTHER_WHITE_SPACE = "\t\r\v\f\x1c\x1d\x1e\x1f"
"""What Python takes for white space in ASCII, besides the space and the newline."""

MOST_WORDS = 1 << 17
"""Words after which the memo is emptied; they take about 30 MB."""

LONGEST_WORD = 40
"""Characters up to which a word is remembered; longer ones, such as sentences in Chinese, rarely occur again."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

ALTERNATIVES = (
    # GPT-2
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+"),
    # GPT-4 (cl100k), Llama 3, Qwen 2
    *(CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+"),
    *(r"\p{N}", r"\p{N}{1,3}", r"\p{N}{1,3}+"),
    *(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*", r"\s*[\r\n]", r"\s*[\r\n]+"),
    # Qwen 3.5
    *(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
    # GPT-4o (o200k), gpt-oss
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s+(?!\S)",
)
r"""Alternatives of the patterns by which tokenizers split a text, besides `\s+` at the end.

None of them continues across a break: a match that contains the space after a break begins with it. The space is either
the first character of the match (` ?` or `[^\r\n\p{L}\p{N}]?`; the classes after it contain no space), or part of white
space at the beginning of the match (`\s+`, `\s*`), which cannot begin further left, as the character before a break is
not white space. Since `\s+` at least matches the space, a match does begin there.

The matches before a break do not depend on what follows it: where a match ends at a break, the space ends it as the end
of the text would, and the only alternative that looks further, `\s+(?!\S)`, matches white space, which is not what
comes before a break. The matches after a break do not depend on what precedes it, as no alternative looks back.
"""

_ONE = "|".join(map(re.escape, ALTERNATIVES))
PATTERN = re.compile(rf"(?:(?:{_ONE})\|)+\\s\+")
"""Patterns of which each alternative is known."""


class WordMemo:
    """Encodes texts word by word: a word is encoded when it first occurs."""

    def __init__(self, encode_texts: Callable[[list[str]], list[list[int]]]) -> None:
        """Start without words.

        Args:
            encode_texts: encodes texts by the tokenizer, for which `encodes_words` is true.
        """
        self._encode_texts = encode_texts
        self._first, self._further = _Words(), _Words()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts; the ids are those of the whole texts."""
        found = []
        for text in texts:
            first, *further = split_at_breaks(text)
            found.append([self._first[first], *map(self._further.__getitem__, further)])
        self._add_new()
        encoded = [list(chain.from_iterable(words)) for words in found]
        self._forget()
        return encoded

    def _add_new(self) -> None:
        """Encode the words that occurred for the first time, all in one call."""
        first, further = self._first.new, self._further.new
        try:
            ids = self._encode_texts([*first, *(f" {word}" for word in further)])
        except BaseException:
            self._first, self._further = _Words(), _Words()  # without the words that have no ids yet
            raise
        for words, own in ((self._first, ids[: len(first)]), (self._further, ids[len(first) :])):
            for word, found in zip(words.new, own, strict=True):
                words[word].extend(found)

    def _forget(self) -> None:
        """Remove long words, or all once there are too many."""
        for words in (self._first, self._further):
            for word in words.new:
                if len(word) > LONGEST_WORD:
                    del words[word]
            words.new.clear()
            if len(words) > MOST_WORDS:
                words.clear()


class _Words(dict[str, list[int]]):
    """Ids by word; a word that is looked up for the first time gets an empty list, and is listed in `new`."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> list[int]:
        self.new.append(word)
        ids: list[int] = []
        self[word] = ids
        return ids


def split_at_breaks(text: str) -> list[str]:
    """Split a text like `WORD_BREAK.split`, in half the time if no space is at the beginning or after white space."""
    if text.isascii() and text[:1] != " " and "  " not in text and "\n " not in text:
        for other in OTHER_WHITE_SPACE:
            if other in text:
                break
        else:
            return text.split(" ")
    return WORD_BREAK.split(text)


def encodes_words(tokenizer: Any) -> bool:
    """Whether a tokenizer encodes the words between the breaks of a text independently of each other.

    Each of its steps has to: it splits a text at added tokens, normalizes it, splits it by a pattern, and applies BPE
    to each part.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
    """
    return (
        type(tokenizer.model).__name__ == "BPE"
        and not tokenizer.model.dropout
        and all(map(_is_plain, tokenizer.get_added_tokens_decoder().values()))
        and _is_nfc(_describe(tokenizer.normalizer))
        and _splits_at_cuts(_describe(tokenizer.pre_tokenizer))
        and _adds_nothing(_describe(tokenizer.post_processor))
    )


def _describe(step: Any) -> Any:
    """Return a step of a tokenizer as it is written in tokenizer.json, without the vocabulary that is there too."""
    return None if step is None else json.loads(step.__getstate__())  # an empty sequence is false


def _is_plain(token: Any) -> bool:
    """Whether an added token contains no break, and is found whatever is before or after it."""
    return not (token.lstrip or token.rstrip or token.single_word or WORD_BREAK.search(token.content))


def _is_nfc(normalizer: Mapping[str, Any] | None) -> bool:
    """Whether a text is normalized by NFC at most, which makes no space, nor combines one with what precedes it."""
    if normalizer and normalizer["type"] == "Sequence":
        return all(map(_is_nfc, normalizer["normalizers"]))
    return normalizer is None or normalizer["type"] == "NFC"


def _splits_at_cuts(step: Any) -> bool:
    r"""Whether a text is split by a known pattern and encoded as bytes; digits may be split off before.

    The rest of a text between digits may end with the space after a break, which `\s+` then matches.
    """
    *before, last = step["pretokenizers"] if step and step["type"] == "Sequence" else [step]
    if last is None or last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last.get("use_regex", True):  # GPT-2's pattern
        return all(other["type"] == "Digits" for other in before)
    if len(before) != 1 or before[0]["type"] != "Split" or before[0]["behavior"] != "Isolated" or before[0]["invert"]:
        return False
    return PATTERN.fullmatch(before[0]["pattern"].get("Regex", "")) is not None


def _adds_nothing(step: Mapping[str, Any] | None) -> bool:
    """Whether the last step leaves the ids as they are, apart from special tokens, which are not added here."""
    if step is None or step["type"] == "ByteLevel":
        return True
    if step["type"] == "Sequence":
        return all(map(_adds_nothing, step["processors"]))
    return step["type"] == "TemplateProcessing" and sum("Sequence" in piece for piece in step["single"]) == 1
