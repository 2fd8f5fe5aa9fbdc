"""How the C library hands out memory while a model is trained on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's `mallopt(3)`."""

OWN_CHOICE = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
"""Variables by which a user has settled the same."""


def keep_freed_memory() -> bool:
    """Take large tensors from the heap, and hand none of it back to the system before the process ends.

    glibc maps every large block anew and unmaps it when it is freed; the system then has to find and clear the pages of
    each activation in every step, which took a seventh of a step's time. The next step needs the same memory again.

    Returns:
        Whether it was done: not with another C library, nor where the environment has settled it.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in OWN_CHOICE):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1)])
