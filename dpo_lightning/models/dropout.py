"""Dropout and router noise of a model, and how they are turned off."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

ROUTER_NOISE = {"jitter_noise", "input_jitter_noise", "moe_jitter_eps"}
"""Attributes of mixture-of-experts layers that multiply the router's input by noise in train mode."""


def without_dropout(model: nn.Module) -> int:
    """Set every dropout and router noise of a model to 0, and return how many were above 0.

    The model stays in train mode, which gradient checkpointing needs.
    """
    active = list(active_dropouts(model))
    for module, name in active:
        setattr(module, name, 0.0)
    return len(active)


def active_dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Iterate over modules with a dropout or router noise above 0, and the attribute that holds it."""
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            yield module, "p"
        for name, value in vars(module).items():  # attention kernels read a plain attribute
            if ("drop" in name or name in ROUTER_NOISE) and isinstance(value, float) and value > 0:
                yield module, name
