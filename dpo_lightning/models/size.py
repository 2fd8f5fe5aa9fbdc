"""Whether a configuration describes a model or an adapter of the size of the stored weights, before memory is taken."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.folder import count_values

SLACK = 200_000_000
"""Values that need not be stored: of buffers, such as masks of all positions."""


def check_size(path: str, config: Any) -> None:
    """Build the model without values, and compare how many it has with how many are stored.

    Missing weights are reported when they are loaded; this check bounds the memory that is allocated for them.

    Raises:
        UserError: the model is far larger than its files.
    """
    from transformers import AutoModelForCausalLM

    if not Path(path).is_dir():
        return
    try:
        with torch.device("meta"):
            built: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception:  # the loader says what is wrong
        return
    described = sum(value.numel() for value in (*built.parameters(), *built.buffers()))
    stored = count_values(Path(path))
    if described > 2 * stored + SLACK:
        what = f"it describes a model of {described:,} values, of which {stored:,} are stored"
        fix = "use a folder whose config.json belongs to its weights (copy it again)"
        raise UserError(ExitCode.MODEL, Problem(what, f"{path}/config.json"), fix=fix)


def check_ranks(options: Mapping[str, Any], sizes: Sequence[int], where: str) -> None:
    """See that no rank is larger than every stored matrix, before memory is taken for it.

    Raises:
        UserError: one is.
    """
    patterns = options.get("rank_pattern")
    ranks = [options.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    far = [rank for rank in ranks if isinstance(rank, (int, float)) and rank > max(sizes, default=0)]
    if far:
        raise UserError(
            ExitCode.MODEL,
            Problem(f"a rank of {far[0]}, where no stored matrix is as large", where),
            fix="copy the folder again",
        )
