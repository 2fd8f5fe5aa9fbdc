"""`torch.compile` of the policy's decoder layers."""

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



def compile_layers(model: Any) -> None:
    """Compile each decoder layer by itself: one graph serves all of them, for batches of any shape.

    Raises:
        UserError: torch would have no C++ compiler.
    """
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
        raise UserError(
            ExitCode.DEVICE,
            Problem("torch.compile needs a C++ compiler, and there is none", "model.policy.compile"),
            fix="apt-get install g++, or --model.policy.compile false",
        )
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            module.compile(dynamic=True)
