"""How the C library hands out memory while a model is trained on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Options of glibc's `mallopt(3)`."""

KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
"""Blocks of any size come from the heap, and none of it is handed back before the process ends."""

HAND_BACK = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: 2**23, M_TRIM_THRESHOLD: 2**26}
"""Blocks of 8 MiB or more go back to the system as soon as they are freed, and leave no holes in the heap."""

OWN_CHOICE = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
"""Variables by which a user has settled the same."""


def settle_memory(*, keep: bool) -> bool:
    """Choose between speed and memory, where glibc by itself has neither.

    It maps the largest blocks anew each time, whose pages the system then has to find and clear: a seventh of a step's
    time. All others come from a heap in which activations of changing sizes leave holes: half a GiB of a small model.

    Args:
        keep: whether freed memory is kept for the next step, or handed back as far as that costs no time.

    Returns:
        Whether it was done: not with another C library, nor where the environment has settled it.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in OWN_CHOICE):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in (KEEP if keep else HAND_BACK).items())
