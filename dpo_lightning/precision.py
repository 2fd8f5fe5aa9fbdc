"""The precision that this machine runs well, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dpo_lightning.errors import ExitCode, UserError

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]

CPU_BF16 = ("amx_bf16", "avx512_bf16")
"""Instruction sets that multiply bfloat16 themselves. Without one, it is emulated and slower than fp32."""

CPUINFO = Path("/proc/cpuinfo")


def choose_precision(accelerator: str = "auto") -> tuple[Precision, str]:
    """Choose a precision by what the hardware computes itself.

    Args:
        accelerator: as `--trainer.accelerator` takes it.

    Returns:
        The word for `--trainer.precision`, and the reason in one sentence.

    Raises:
        UserError: the named accelerator is not there.
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
        return "32-true", "Apple GPUs are not tested here in a lower precision."
    if accelerator in ("cuda", "gpu", "mps"):
        what = f"torch {torch.__version__} sees no device for accelerator {accelerator!r}"
        raise UserError(ExitCode.DEVICE, what, "python -m dpo_lightning doctor; or --trainer.accelerator cpu")
    return "32-true", f"nothing is known about {accelerator!r} here, and fp32 runs everywhere."


def _of_cuda() -> tuple[Precision, str]:
    """The weakest of the visible GPUs decides: every rank runs the same precision."""
    import torch

    if torch.version.hip:
        return "bf16-mixed", "AMD GPUs that torch supports compute in bf16."
    devices = range(torch.cuda.device_count())
    major, name = min((torch.cuda.get_device_capability(i)[0], torch.cuda.get_device_name(i)) for i in devices)
    if major >= 8:
        return "bf16-mixed", f"{name} computes in bf16."
    return "16-mixed", f"{name} is older than Ampere: it computes in fp16 and not in bf16."


def _of_cpu() -> tuple[Precision, str]:
    import torch

    found = [name for name in CPU_BF16 if name in _cpu_features()]
    if found and torch.backends.mkldnn.is_available():
        return "bf16-mixed", f"this processor has {found[0]}, with which bf16 is faster than fp32."
    if found:
        return "32-true", f"this processor has {found[0]}, but this torch lacks oneDNN, which would use it."
    return "32-true", f"this processor has neither {' nor '.join(CPU_BF16)}, and would only emulate bf16."


def _cpu_features() -> set[str]:
    """What torch finds in the processor; where it does not say, what Linux does."""
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
