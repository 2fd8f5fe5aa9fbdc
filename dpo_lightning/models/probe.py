"""Trials of a model on a few random tokens: the tokens, the mode in which it runs, and the tolerances."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dpo_lightning.attention.flex import eager_layers
from dpo_lightning.batches import Batch
from dpo_lightning.data.collate import Collator
from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair

FLOAT32_TOLERANCE = 1e-4
"""Float32 rounding: largest difference between two layouts, as a fraction of the largest absolute log-probability."""

HALF_TOLERANCE = 3e-2
"""The same for bfloat16 and float16, which hold two to three decimal digits."""


def rounding_tolerance(model: Any) -> float:
    """`FLOAT32_TOLERANCE` or `HALF_TOLERANCE`, by the precision that the model computes in."""
    # LLM.int8() on a GPU rounds activations to 127 steps, so a float32 difference in the last bit can become 1/127.
    exact = model.dtype == torch.float32 and not getattr(model, "is_loaded_in_8bit", False)
    return FLOAT32_TOLERANCE if exact else HALF_TOLERANCE


def list_generators(model: Any) -> list[torch.device]:
    """List the devices, beside the CPU, whose random state a forward pass of the model may change."""
    return [model.device] if model.device.type == "cuda" else []


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Run a model in eval mode, without gradients and without autocast; its train mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.train(training)


@contextmanager
def exact_mode(model: Any) -> Iterator[None]:
    """`evaluation_mode` in which float32 products are exact, also after `torch.set_float32_matmul_precision("high")`.

    The tolerances of the trials are those of float32: with TF32, a sound model would exceed them.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with evaluation_mode(model):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


@contextmanager
def trial(model: Any) -> Iterator[None]:
    """`exact_mode` in which compiled layers run eagerly: compiling a graph for a few tokens takes too long."""
    with exact_mode(model), eager_layers():
        yield


def draw_ids(vocabulary: int, rows: int, length: int) -> Int[Tensor, "row position"]:
    """Draw token ids on the CPU, the same at every call."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (rows, length), generator=draw, device="cpu")


def make_probe(vocabulary: int, special: Collection[int] = ()) -> tuple[list[EncodedPair], list[int]]:
    """Make two pairs of random tokens whose answers differ in length.

    Args:
        vocabulary: number of token ids.
        special: ids to avoid, such as image placeholders; the next other id is used instead.

    Returns:
        The pairs and their row numbers.
    """
    draw = torch.Generator().manual_seed(0)

    def answer(length: int) -> EncodedAnswer:
        ids = torch.randint(vocabulary, (length,), generator=draw, device="cpu").tolist()
        for place, id_ in enumerate(ids):
            others = (other % vocabulary for other in range(id_, id_ + vocabulary))
            ids[place] = next((other for other in others if other not in special), id_)
        return EncodedAnswer(ids, [True] * length)

    pairs = [
        EncodedPair(Origin("probe", k), answer(prompt).ids, (answer(5), answer(3))) for k, prompt in enumerate((7, 4))
    ]
    return pairs, [0, 1]


def probe_batch(model: Any, layout: Collator, special: Collection[int] = ()) -> Batch:
    """Make the probe's pairs into a batch on the device of a transformers model; `special` as in `make_probe`."""
    pairs, indices = make_probe(model.config.get_text_config().vocab_size, special)
    with torch.device("cpu"):  # Lightning makes the GPU the default device while a model is built
        batch = layout.collate(pairs, indices)
    return batch.to(model.device)
