"""Whether a configuration describes a model or adapter of the stored size, before memory is allocated for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.folder_checks import count_values

SLACK = 200_000_000
"""Values that need not be stored: of buffers, such as attention masks."""


def check_size(path: str, config: Any) -> None:
    """Compare the number of values that a configuration describes with the number that is stored.

    Missing weights are reported when they are loaded; this check limits the memory that is allocated for them.

    Raises:
        UserError: the described model is far larger than its files.
    """
    from transformers import AutoModelForCausalLM

    if not Path(path).is_dir():
        return
    try:
        with torch.device("meta"):
            built: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception:  # the loader reports it
        return
    described = sum(value.numel() for value in (*built.parameters(), *built.buffers()))
    stored = count_values(Path(path))
    if described > 2 * stored + SLACK:
        what = f"the configuration describes {described:,} values, but {stored:,} are stored"
        fix = "use a folder whose config.json matches its weights (copy it again)"
        raise UserError(ExitCode.MODEL, Problem(what, f"{path}/config.json"), fix=fix)


def check_ranks(options: Mapping[str, Any], sizes: Sequence[int], where: str) -> None:
    """Check that no rank of an adapter exceeds the largest stored dimension, before memory is allocated for it.

    Args:
        options: of the adapter's configuration.
        sizes: dimensions of the stored matrices.
        where: the file, for the message.

    Raises:
        UserError: a rank is too large.
    """
    patterns = options.get("rank_pattern")
    ranks = [options.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    far = [rank for rank in ranks if isinstance(rank, (int, float)) and rank > max(sizes, default=0)]
    if far:
        raise UserError(
            ExitCode.MODEL,
            Problem(f"rank {far[0]} exceeds every stored matrix", where),
            fix="copy the folder again",
        )
