"""A digest of an answer as a model sees it, by which its reference log-probabilities are found."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from dpo_lightning.data.examples import EncodedAnswer


def answer_digest(prompt_ids: Sequence[int], answer: EncodedAnswer) -> bytes:
    """The SHA-256 of an answer, its prompt, and which of its tokens are scored."""
    digest = hashlib.sha256(array("q", [len(prompt_ids), len(answer.ids), *prompt_ids, *answer.ids]).tobytes())
    digest.update(bytes(answer.scored))
    return digest.digest()
