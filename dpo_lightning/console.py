"""Lines for the person at the terminal, from the first process only."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this process speaks for all: rank 0 of a launcher or of Slurm, or the only one."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def say(line: str) -> None:
    """Print a line at once."""
    if is_first_process():
        print(line, flush=True)
