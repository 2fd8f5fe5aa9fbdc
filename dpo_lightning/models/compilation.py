"""`torch.compile` of the policy's decoder layers."""

from __future__ import annotations

import os
import shutil
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError


def compile_layers(model: Any) -> None:
    """Compile each decoder layer by itself: one graph serves all layers, for batches of any shape.

    Raises:
        UserError: there is no C++ compiler, which torch needs.
    """
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
        raise UserError(
            ExitCode.DEVICE,
            Problem("torch.compile needs a C++ compiler, and none is installed", "model.policy.compile"),
            fix="apt-get install g++, or --model.policy.compile false",
        )
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            module.compile(dynamic=True)
