"""Dropout is switched off where policy and reference have to be one function."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def without_dropout(model: nn.Module) -> int:
    """Set every dropout of a model to 0 and return how many were not.

    The model stays in train mode, which gradient checkpointing needs. Attention kernels read a plain attribute.
    """
    silenced = 0
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            module.p = 0.0
            silenced += 1
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                silenced += 1
    return silenced
