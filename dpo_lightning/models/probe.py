"""A trial of a model on a few random tokens: whether two ways of computing agree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
import torch
from torch import Tensor, nn
from dpo_lightning.attention.tree import Kernel, tree_attention
from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.data.examples import EncodedAnswer, EncodedPair, Origin
from dpo_lightning.logps import token_logps
from dpo_lightning.attention.masks import Forest, causal_mask
from dpo_lightning.batches import Batch



AnyBatch = TypeVar("AnyBatch", bound=Batch)


TOLERANCE = 1e-4
"""Part of the largest log-probability by which layouts may differ in float32, where sums run in another order."""


HALF_TOLERANCE = 3e-2
"""The same in half precision, whose logits have some three digits."""


def lacks_memory(error: Exception) -> bool:
    """Whether an error of a model's pass is none of the model's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "memory" in str(error).lower()


def rounding(model: Any) -> float:
    """Part of the largest log-probability by which rounding may move one."""
    # On a GPU, layers of 8 bits round what they multiply: a hair's breadth may become a step of 1/127.
    exact = model.dtype == torch.float32 and not getattr(model, "is_loaded_in_8bit", False)
    return TOLERANCE if exact else HALF_TOLERANCE


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """No gradient, no dropout and no precision but the model's own for a while."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.train(training)


def on_device(batch: AnyBatch, model: Any) -> AnyBatch:
    """A batch where the model is."""
    tensors: dict[str, Any] = {name: part for name, part in batch._asdict().items() if isinstance(part, Tensor)}
    return batch._replace(**{name: part.to(model.device) for name, part in tensors.items()})  # type: ignore[return-value]


def probe(vocabulary: int, special: Collection[int] = ()) -> tuple[list[EncodedPair], list[int]]:
    """Two pairs of random tokens whose answers differ in length; the next id takes the place of a special one."""
    draw = torch.Generator().manual_seed(0)

    def answer(length: int) -> EncodedAnswer:
        ids = torch.randint(vocabulary, (length,), generator=draw, device="cpu").tolist()
        for place, id_ in enumerate(ids):
            others = (other % vocabulary for other in range(id_, id_ + vocabulary))
            ids[place] = next((other for other in others if other not in special), id_)
        return EncodedAnswer(ids, [True] * length)

    pairs = [
        EncodedPair(Origin("probe", k), answer(prompt).ids, answer(5), answer(3)) for k, prompt in enumerate((7, 4))
    ]
    return pairs, [0, 1]
