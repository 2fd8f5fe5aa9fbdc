"""A pair of texts as the ids of one prompt and two answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.kinds.pairs import PairExample
from support.batch_layouts import ORIGIN


def encode(
    tokenizer: Any, prompt: Any, chosen: Any, rejected: Any, *, template: str = "auto", ends: Iterable[int] = ()
) -> tuple[Any, Any]:
    """The pair, and what was counted on the way."""
    encoder = Encoder(Renderer(tokenizer, template, end_ids=frozenset(ends)), 200)
    (pair,) = encoder.encode([PairExample(ORIGIN, prompt, (chosen, rejected))])
    return pair, encoder.counts
