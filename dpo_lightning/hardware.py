"""This machine: the precision that it computes fast, its memory and cgroup limits, and its allocator's settings."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Literal

from dpo_lightning.errors import ExitCode, UserError

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]

CPU_BF16 = ("amx_bf16", "avx512_bf16")
"""Instruction sets that multiply bfloat16. Without one it is emulated, and slower than fp32."""

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux lists the instruction sets of the processor."""


def choose_precision(accelerator: str = "auto") -> tuple[Precision, str]:
    """Choose a precision that the hardware computes fast.

    Args:
        accelerator: as in `--trainer.accelerator`.

    Returns:
        The value for `--trainer.precision`, and the reason in one sentence.

    Raises:
        UserError: the named accelerator is not available.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator in ("auto", "gpu"):
        accelerator = "cuda" if cuda else "mps" if mps else "cpu" if accelerator == "auto" else "gpu"
    if accelerator == "cpu":
        return _of_cpu()
    if accelerator == "cuda" and cuda:
        return _of_cuda()
    if accelerator == "mps" and mps:
        return "32-true", "lower precisions are not tested on Apple GPUs."
    if accelerator in ("cuda", "gpu", "mps"):
        what = f"torch {torch.__version__} finds no device for accelerator {accelerator!r}"
        raise UserError(ExitCode.DEVICE, what, "python -m dpo_lightning doctor; or --trainer.accelerator cpu")
    return "32-true", f"{accelerator!r} is not tested, and fp32 runs everywhere."


def _of_cuda() -> tuple[Precision, str]:
    """Choose by the weakest of the visible GPUs, as every rank runs in the same precision."""
    import torch

    if torch.version.hip:
        return "bf16-mixed", "AMD GPUs that torch supports compute in bf16."
    devices = range(torch.cuda.device_count())
    major, name = min((torch.cuda.get_device_capability(i)[0], torch.cuda.get_device_name(i)) for i in devices)
    if major >= 8:
        return "bf16-mixed", f"{name} computes in bf16."
    return "16-mixed", f"{name} is older than Ampere and computes in fp16, not in bf16."


def _of_cpu() -> tuple[Precision, str]:
    import torch

    found = [name for name in CPU_BF16 if name in _cpu_features()]
    if found and torch.backends.mkldnn.is_available():
        return "bf16-mixed", f"this processor has {found[0]}, with which bf16 is faster than fp32."
    if found:
        return "32-true", f"this processor has {found[0]}, but this torch lacks oneDNN, which would use it."
    return "32-true", f"this processor has neither {' nor '.join(CPU_BF16)}, and would only emulate bf16."


def _cpu_features() -> set[str]:
    """Return the processor's instruction sets as torch reports them, or else Linux."""
    import torch

    try:
        return {name for name, present in torch.cpu.get_capabilities().items() if present is True}
    except (AttributeError, RuntimeError):  # torch before 2.13, or a processor that its library does not know
        pass
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


OWN_CGROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The cgroups of this process, and the file system with their limits."""


def machine_memory() -> float:
    """Return the bytes of memory that this process may use: physical memory, or the limit of its cgroup."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, read_cgroup("memory") or total)


def read_cgroup(resource: Literal["cpu", "memory"]) -> float:
    """Return the smallest limit of this process's cgroups, in cores or bytes; 0 if there is none."""
    limits: list[float] = []
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and resource not in controllers.split(","):
            continue
        base = CGROUPS if number == "0" else CGROUPS / resource
        own = base / path.strip("/")
        # A limit of any group above counts too. In a container the own path may not be visible, its root is.
        limits += [read_limit(group, resource) for group in (own, *own.parents) if group.is_relative_to(base)]
    return min((limit for limit in limits if limit > 0), default=0)


def read_limit(group: Path, resource: str) -> float:
    """Return the limit in one cgroup folder of version 2 or 1; 0 if there is none."""

    def read(name: str) -> list[str]:
        try:
            return (group / name).read_text(encoding="utf-8").split()
        except OSError:
            return []

    # Version 2 first, then version 1. No limit is `max`, or a negative quota.
    if resource == "memory":
        words = read("memory.max") or read("memory.limit_in_bytes")
        return float(words[0]) if words and words[0] != "max" else 0
    words = read("cpu.max") or [*read("cpu.cfs_quota_us"), *read("cpu.cfs_period_us")]
    return float(words[0]) / float(words[1]) if len(words) == 2 and words[0] != "max" else 0


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Options of glibc's `mallopt(3)`."""


KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
"""Allocate blocks of any size from the heap, and never return memory to the system."""


BLOCK, PIECE = 2**23, 2**18
"""Bytes from which blocks are returned, and where models are sharded: weights are gathered and freed one by one."""

HAND_BACK = {M_MMAP_MAX: 2**16, M_MMAP_THRESHOLD: BLOCK, M_TRIM_THRESHOLD: 2**26}
"""Return large blocks to the system when they are freed, so that they leave no holes in the heap."""


OWN_CHOICE = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
"""Environment variables by which a user sets the same options."""


def settle_memory(*, keep: bool, least: int = BLOCK) -> bool:
    """Set glibc's allocator to favour speed or memory; its default gives neither.

    By default, the largest blocks are mapped again each time, and the system has to find and clear their pages: a
    seventh of a step's time. All others come from a heap in which activations of changing sizes leave holes: half a GiB
    for a small model.

    Args:
        keep: whether freed memory is kept for the next step, or returned where that costs no time.
        least: the bytes of a block from which it is returned.

    Returns:
        Whether the options were set: not with another C library, nor if the environment sets them.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in OWN_CHOICE):
        return False
    options = KEEP if keep else HAND_BACK | {M_MMAP_THRESHOLD: least}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in options.items())
