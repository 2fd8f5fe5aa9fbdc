"""Log-probabilities of `PAIRS` by plain calls and by batches."""

from __future__ import annotations

from typing import Any

import torch

from dpo_lightning.logps import token_logps
from support.model_families import PAIRS

NUMBERS = range(len(PAIRS))


def plain(model: Any) -> torch.Tensor:
    """Log-probabilities of the pairs' scored tokens, by a plain call for each unpadded sequence."""
    found = []
    for side in (0, 1):
        for row in PAIRS:
            said = row.answers[side]
            ids = [*row.prompt_ids, *said.ids]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            first = len(row.prompt_ids)
            found += [logits[first + k - 1, id_] for k, id_ in enumerate(said.ids) if said.scored[k]]
    return torch.stack(found)


def logps(model: Any, layout: Any, head: Any = None) -> torch.Tensor:
    """Of the same tokens, by a batch."""
    with torch.no_grad():
        return token_logps(model, layout.collate(PAIRS, NUMBERS), head).values
