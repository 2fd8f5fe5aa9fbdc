"""The attention that this package registers with transformers, and whether a model computes the same with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dpo_lightning.models.probe import lacks_memory, on_device, probe, rounding, undisturbed
from dpo_lightning.attention.tree import Kernel, tree_attention
from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.data.examples import EncodedAnswer, EncodedPair, Origin
from dpo_lightning.logps import token_logps
from dpo_lightning.attention.masks import Forest, causal_mask
from dpo_lightning.batches import Batch


NAME = "dpo_lightning"
"""As transformers knows it: `model.config._attn_implementation`."""

SEEN_AT_ONCE = {"full_attention", "sliding_attention"}
"""Kinds of layers (`layer_types` of a config) in which a token sees what a mask lets it see and carries no state."""

BY_BLOCKS = {"cuda"}
"""Kinds of devices on which FlexAttention is compiled, forward and backward."""




@torch.compiler.disable  # trees differ from batch to batch: compiled layers call it from outside of their graphs
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    trees: Forest | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """What a model's attention layers call: trees where the batch has some, else what transformers' SDPA does.

    Raises:
        ValueError: the layer asks for something that is not here, such as attention sinks.
    """
    strange = [name for name in ("s_aux", "position_bias", "cache") if options.get(name) is not None]
    if trees and isinstance(attention_mask, Tensor) and attention_mask.numel() > 1:
        strange.append("a mask of its own")
    if strange:
        raise ValueError(f"its attention has {' and '.join(strange)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if trees is not None and query.device.type in BY_BLOCKS and not dropout:
        from transformers.integrations.flex_attention import flex_attention_forward

        mask = trees.block_mask(sliding_window, query.device)
        query, key = query.to(value.dtype), key.to(value.dtype)
        return flex_attention_forward(module, query, key, value, mask, scaling=scaling, softcap=softcap)
    if trees is not None:
        return tree_attention(query, key, value, trees.trees, Kernel(scale, dropout, softcap, sliding_window)), None
    if softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if attention_mask is None:
        attention_mask = causal_mask(query.shape[2], key.shape[2], sliding_window, query.device)
    out = Kernel(scale, dropout, softcap).capped(query, key, value, attention_mask)
    return out.transpose(1, 2).contiguous(), None




def takes_trees(model: Any) -> bool:
    """Whether a model was switched to this attention."""
    return bool(model.config._attn_implementation == NAME)


def install(model: Any) -> str:
    """Switch a whole model to this attention where it computes the same with it.

    Args:
        model: a transformers model with weights.

    Returns:
        Nothing where it did, else the reason why it keeps its own attention.
    """
    config, own = model.config.get_text_config(), model.config._attn_implementation
    strange = set(getattr(config, "layer_types", None) or ()) - SEEN_AT_ONCE
    if strange:
        return f"{config.model_type} has {', '.join(sorted(strange))} layers, which run along a whole row"
    pairs, indices = probe(config.vocab_size)
    with torch.device("cpu"):  # lightning makes the GPU the default while a model is built
        batches = [layout.pairs(pairs, indices) for layout in (Padded(), PackedSharedPrefix())]
    with undisturbed(model), recording() as windows:
        try:
            batches = [on_device(batch, model) for batch in batches]
            expected = token_logps(model, batches[0]).values
            model.set_attn_implementation(NAME)
            found = [token_logps(model, batch).values for batch in batches]
        except Exception as error:  # a model's own code may raise anything
            if lacks_memory(error):
                raise
            reason = f"{config.model_type} does not run with it: {next(iter(str(error).splitlines()), repr(error))}"
        else:
            tolerance = rounding(model) * float(expected.abs().max())
            off = max(float((other - expected).abs().max()) for other in found)
            windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
            sliding = (getattr(config, "layer_types", None) or ()).count("sliding_attention")
            reason = ""
            if not windows:
                reason = f"{config.model_type} has an attention of its own"
            elif not off <= tolerance:  # NaN as well
                reason = f"{config.model_type} gives other log-probabilities in packed rows, by {off:.2g} nats"
            elif windowed and sum(map(bool, windows)) < max(sliding, 1):  # the trial is shorter than most windows
                reason = f"{config.model_type} has a sliding window of which its attention is not told"
    if reason:
        model.set_attn_implementation(own)
    return reason






@contextmanager
def recording() -> Iterator[list[int | None]]:
    """Register the attention, and note for a while which sliding window each call with trees was told of."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    windows: list[int | None] = []

    def noting(*args: Any, **options: Any) -> tuple[Tensor, Any]:
        if options.get("trees") is not None:
            windows.append(options.get("sliding_window"))
        return attention(*args, **options)

    AttentionMaskInterface.register(NAME, sdpa_mask)
    AttentionInterface.register(NAME, noting)
    try:
        yield windows
    finally:
        AttentionInterface.register(NAME, attention)






