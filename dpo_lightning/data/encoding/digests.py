"""Digests of encoded answers, by which values computed for an answer are found again, and of plain data."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence

from dpo_lightning.data.examples import EncodedAnswer

DIGEST_BYTES = 32


def answer_digest(prompt_ids: Sequence[int], answer: EncodedAnswer) -> bytes:
    """Return the SHA-256 of all that a model's log-probabilities of an answer depend on.

    These are the token ids of the prompt and of the answer, where one ends and the other begins, and which tokens are
    scored.
    """
    digest = hashlib.sha256(array("q", [len(prompt_ids), len(answer.ids), *prompt_ids, *answer.ids]).tobytes())
    digest.update(bytes(answer.scored))
    return digest.digest()


def digest_of(content: object) -> str:
    """Return the SHA-256 of plain data written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
