"""Whether a disk has room for what a run or a command will write."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo_lightning.errors import ExitCode, Problem, UserError

BYTES_PER_TRAINED_VALUE = 40
"""Two checkpoints and one that is being written hold a weight and AdamW's two moments, the final model the weight."""


def check_space(path: Path, needed: int, key: str = "output_dir") -> None:
    """Check that the disk can hold what the run will write.

    Args:
        path: the run's folder, which may not exist yet.
        needed: bytes.
        key: the option that names the folder.

    Raises:
        UserError: the free space is too small.
    """
    above = path
    while not above.exists():
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            ExitCode.OUTPUT,
            Problem(f"{free / 1e9:.1f} GB are free, but the run writes up to {needed / 1e9:.1f} GB", key, str(path)),
            fix=f"free some space, or choose --{key} on another disk",
        )
