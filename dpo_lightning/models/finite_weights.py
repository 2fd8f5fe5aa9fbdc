"""`check_finite`: refuses a model with weights that are NaN or infinite, which no learning rate would mend."""

from __future__ import annotations

from typing import Any

import torch

from dpo_lightning.errors import ExitCode, Problem, UserError


def check_finite(model: Any, path: str, where: str) -> None:
    """Refuse a loaded model whose weights are not all finite.

    Args:
        model: the model.
        path: the folder that it was loaded from.
        where: the option that names the folder.

    Raises:
        UserError: 67, with the first tensor that is not finite and how many there are.
    """
    floating = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    # A sum needs no second tensor, and is finite only if every value is, unless it overflows itself.
    doubtful = [name for name, value in floating.items() if not value.sum(dtype=torch.float32).isfinite()]
    broken = [name for name in doubtful if not floating[name].isfinite().all()]
    if not broken:
        return
    kind = str(floating[broken[0]].dtype).removeprefix("torch.")
    what = f"{len(broken)} of the model's {len(floating)} tensors have values that are NaN or infinite, first:"
    fix = "copy the folder again, or use another model or an earlier checkpoint of it"
    if kind == "float16":
        fix += "; values above 65504 are infinite in float16: --model.policy.dtype bfloat16 or float32"
    raise UserError(ExitCode.MODEL, Problem(f"{what} {broken[0]} ({kind})", where, path), fix=fix)
