"""The attention function that is registered with transformers, and a test whether a model computes the same with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lightning.attention.flex import SMALLEST_HEAD, Forest, attend_by_blocks
from dpo_lightning.attention.masks import causal_mask
from dpo_lightning.attention.tree import AttentionParams, tree_attention
from dpo_lightning.data.collate import PackedSharedPrefix, Padded
from dpo_lightning.errors import lacks_memory
from dpo_lightning.logps import token_logps
from dpo_lightning.models.probe import exact_mode, probe_batch, rounding_tolerance

ATTENTION_NAME = "dpo_lightning"
"""The name under which transformers knows it: `model.config._attn_implementation`."""

SEEN_AT_ONCE = {"full_attention", "sliding_attention"}
"""`layer_types` of a config in which the attention mask alone decides what a token sees, and no state is carried along.
"""

BY_BLOCKS = {"cuda"}
"""Device types on which FlexAttention is compiled, forward and backward. It has no dropout of attention weights."""


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
    """Compute a layer's attention: over trees if the batch has some, else as transformers' SDPA does.

    Raises:
        ValueError: the layer needs something that is not implemented here, such as attention sinks.
    """
    # Arguments of some models that this function would otherwise ignore.
    unsupported = [name for name in ("s_aux", "position_bias", "cache") if options.get(name) is not None]
    if trees and isinstance(attention_mask, Tensor) and attention_mask.numel() > 1:
        unsupported.append("a mask of its own")
    if unsupported:
        raise ValueError(f"its attention has {' and '.join(unsupported)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if trees is not None and query.device.type in BY_BLOCKS and not dropout and value.shape[-1] >= SMALLEST_HEAD:
        if torch.is_autocast_enabled(query.device.type):  # 4-bit layers return float32, also under autocast
            value = value.to(torch.get_autocast_dtype(query.device.type))
        query, key = query.to(value.dtype), key.to(value.dtype)
        mask = trees.block_mask(sliding_window, query.device)
        return attend_by_blocks(query, key, value, mask, scale, softcap), None
    if trees is not None:
        return tree_attention(
            query, key, value, trees.trees, AttentionParams(scale, dropout, softcap, sliding_window)
        ), None
    if softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    # transformers leaves the mask out where it is plainly causal.
    if attention_mask is None:
        attention_mask = causal_mask(query.shape[2], key.shape[2], sliding_window, query.device)
    out = AttentionParams(scale, dropout, softcap).attend_capped(query, key, value, attention_mask)
    return out.transpose(1, 2).contiguous(), None


def takes_trees(model: Any) -> bool:
    """Whether a model uses this attention, and so computes correctly for packed rows and shared prefixes."""
    return bool(model.config._attn_implementation == ATTENTION_NAME)


def install(model: Any) -> str:
    """Switch a model to this attention if it then computes the same log-probabilities.

    Args:
        model: a transformers model with weights.

    Returns:
        An empty string if the model was switched, else the reason why it keeps its own attention.
    """
    config, own = model.config.get_text_config(), model.config._attn_implementation
    recurrent = set(getattr(config, "layer_types", None) or ()) - SEEN_AT_ONCE
    if recurrent:
        return f"{config.model_type} has {', '.join(sorted(recurrent))} layers, which mix all tokens of a row"
    batches = [probe_batch(model, layout) for layout in (Padded(), PackedSharedPrefix())]
    with exact_mode(model), record_windows() as windows:
        try:
            expected = token_logps(model, batches[0]).values
            # Padded rows now run through SDPA here, shared prefixes through trees.
            model.set_attn_implementation(ATTENTION_NAME)
            found = [token_logps(model, batch).values for batch in batches]
        except Exception as error:  # a model's own code may raise anything
            if lacks_memory(error):
                raise
            problem = next(iter(str(error).splitlines()), repr(error))
            reason = f"{config.model_type} fails with the package's attention: {problem}"
        else:
            tolerance = rounding_tolerance(model) * float(expected.abs().max())
            off = max(float((other - expected).abs().max()) for other in found)
            windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
            sliding = (getattr(config, "layer_types", None) or ()).count("sliding_attention")
            reason = ""
            if not windows:
                reason = f"{config.model_type} does not use transformers' attention functions"
            elif not off <= tolerance:  # NaN as well
                reason = f"{config.model_type} gives log-probabilities in packed rows that differ by {off:.2g} nats"
            elif windowed and sum(map(bool, windows)) < max(
                sliding, 1
            ):  # probes are shorter than most windows, so that a missing one would not show
                reason = f"{config.model_type} does not pass its sliding window to the attention function"
    if reason:
        model.set_attn_implementation(own)
    return reason


@contextmanager
def record_windows() -> Iterator[list[int | None]]:
    """Register the attention, and within the block record the sliding window of every call with trees."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    windows: list[int | None] = []

    def record(*args: Any, **options: Any) -> tuple[Tensor, Any]:
        if options.get("trees") is not None:
            windows.append(options.get("sliding_window"))
        return attention(*args, **options)

    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    AttentionInterface.register(ATTENTION_NAME, record)
    try:
        yield windows
    finally:
        AttentionInterface.register(ATTENTION_NAME, attention)
