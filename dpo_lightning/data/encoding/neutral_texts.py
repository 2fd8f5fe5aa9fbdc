"""Texts with neutralized control tokens: a copy of the tokenizer reads these as plain text, in their place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpo_lightning.data.encoding.text_encoder import TextEncoder, calls_backend, is_panic
from dpo_lightning.errors import UserError

MARK = "\ufdd0"
"""A noncharacter of Unicode: with two of them, the copy writes the control tokens that a template wrote."""

FIRST = 0xF0000
"""The code point between the two that stands for the first control token; the others follow."""

ANCHORS = ("\n", ".", "x")
"""Texts before a piece that is encoded alone: tokenizers add a space to the beginning of a text, and not within it."""


class NeutralEncoder:
    """Encodes texts in which some control tokens are plain text.

    Pieces are not encoded one by one: many tokenizers add a space in front of whatever they encode. In a copy of the
    tokenizer, control tokens have other names, which are written where the template wrote a control token.
    """

    def __init__(self, encoder: TextEncoder, controls: Sequence[str]) -> None:
        """Copy the tokenizer.

        Args:
            encoder: encodes texts by the tokenizer.
            controls: the control tokens, the longest first.
        """
        self._encoder = encoder
        self._marks = {control: f"{MARK}{chr(FIRST + number)}{MARK}" for number, control in enumerate(controls)}
        self._pattern = re.compile("|".join(map(re.escape, controls)))
        self._copy = rename_controls(encoder.tokenizer, self._marks)

    def encode(self, pieces: Sequence[tuple[str, bool]]) -> list[int] | UserError:
        """Encode a text.

        Args:
            pieces: its pieces, each with whether it is a neutralized control token.

        Returns:
            Its ids, or an error with code 67 if the Rust code of the tokenizer panics.
        """
        if self._copy is None or any(MARK in piece for piece, _ in pieces):
            return self._encode_pieces(pieces)
        written = (piece if control else self._pattern.sub(self._mark, piece) for piece, control in pieces)
        try:
            ids: list[int] = self._copy.encode("".join(written), add_special_tokens=False).ids
        except BaseException as error:
            if not is_panic(error):
                raise
            return self._encode_pieces(pieces)  # which reports it
        return ids

    def _mark(self, found: re.Match[str]) -> str:
        return self._marks[found[0]]

    def _encode_pieces(self, pieces: Iterable[tuple[str, bool]]) -> list[int] | UserError:
        """Encode the pieces one by one, all but the first after an anchor whose ids are cut off.

        Control tokens are divided: the vocabulary may have one as a word too, with the same id.
        """
        ids: list[int] = []
        parts = [part for piece, control in pieces for part in (divide(piece) if control else [(piece, False)])]
        for number, (piece, control) in enumerate(parts):
            found = self._encode_piece(piece, control, ANCHORS if number else ())
            if isinstance(found, UserError):
                return found
            ids += found
        return ids

    def _encode_piece(self, piece: str, control: bool, anchors: Sequence[str]) -> list[int] | UserError:
        options = {"split_special_tokens": True} if control else {}
        for anchor in anchors:
            before, whole = (self._encoder.encode_alone(text, **options) for text in (anchor, anchor + piece))
            if isinstance(before, UserError) or isinstance(whole, UserError):
                break
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self._encoder.encode_alone(piece, **options)


def divide(control: str) -> list[tuple[str, bool]]:
    """A control token as pieces of which none is the whole."""
    return [(part, True) for part in (control[:1], control[1:]) if part]


def rename_controls(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """Return a copy of the backend of a tokenizer in which control tokens have other names and the same ids.

    Args:
        tokenizer: a tokenizer of transformers.
        names: control token -> its name in the copy.

    Returns:
        The copy, a `tokenizers.Tokenizer`; None for a tokenizer that does more than call such a backend, or whose
        control tokens depend on what is around them.
    """
    if not calls_backend(tokenizer):
        return None
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = [token for token in state["added_tokens"] if token["special"]]
    if {token["content"] for token in added} != names.keys() or any(token["single_word"] for token in added):
        return None
    for token in added:
        token["content"] = names[token["content"]]
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # those that would make a control token out of letters
        model["merges"] = [merge for merge in model["merges"] if not names.keys() & _list_parts(merge)]
    copy: Any = Tokenizer.from_str(json.dumps({**state, "post_processor": None, "padding": None, "truncation": None}))
    ids = {control: tokenizer.backend_tokenizer.token_to_id(control) for control in names}
    return copy if all(copy.token_to_id(names[control]) == id_ for control, id_ in ids.items()) else None


def _list_parts(merge: Any) -> set[str]:
    """Both parts of a merge, and what they give; older files have them in one string."""
    first, second = merge if isinstance(merge, list) else merge.split(" ", 1)
    return {first, second, first + second}
