"""Frozen weights in 4 or 8 bits by bitsandbytes below an adapter (QLoRA), and fixes for training with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn

from dpo_lightning.errors import ExitCode, Problem, UserError

QUANTIZATION_KEY = "model.policy.quantization"
LEAST = (0, 50, 2)
"""The oldest release of bitsandbytes that was tested; it also computes on CPUs."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

HALVES: dict[str, Dtype] = {"bf16": "bfloat16", "16": "float16"}
"""Prefixes of `--trainer.precision`, and the data type of the computation."""


@dataclass(frozen=True)
class Quantization:
    """The base's linear layers in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) or 8 (arXiv:2208.07339).

    Embeddings, norms and the output head stay in float32. The weights are quantized while they are loaded.
    """

    bits: Literal[4, 8] = 4
    """Bits per weight."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values of 4 bits: `nf4` has the quantiles of a normal distribution."""

    double_quant: bool = False
    """Quantize the scale of each 64 weights as well, which saves 0.37 bits per weight."""

    compute_dtype: Dtype = "auto"
    """Data type to which 4-bit weights are converted for a matrix product; `auto` follows `--trainer.precision`."""

    def __post_init__(self) -> None:
        for name in ("quant_type", "double_quant", "compute_dtype"):
            if self.bits == 8 and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={getattr(self, name)} applies to 4 bits only", f"{QUANTIZATION_KEY}.{name}"),
                    fix=f"leave {name} out, or --{QUANTIZATION_KEY}.bits 4",
                )

    def under(self, precision: str) -> Quantization:
        """Return a copy with `auto` replaced by the data type that `--trainer.precision` computes in."""
        if self.bits == 8 or self.compute_dtype != "auto":
            return self
        return replace(self, compute_dtype=HALVES.get(precision.partition("-")[0], "float32"))

    @property
    def exact(self) -> bool:
        """Whether products are computed in float32; in 8 bits, GPUs also round activations."""
        return self.bits == 4 and self.compute_dtype in ("auto", "float32")

    def __str__(self) -> str:
        if self.bits == 8:
            return "8 bits"
        double = ", scales quantized" if self.double_quant else ""
        return f"4 bits {self.quant_type}{double}, computed in {self.compute_dtype.replace('auto', 'float32')}"


def check_installed() -> None:
    """Check that bitsandbytes is installed, with an error that names the remedy.

    Raises:
        UserError: it is missing or too old.
    """
    wanted = "bitsandbytes>=" + ".".join(map(str, LEAST))
    try:
        version = metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        version = ""
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    if numbers < LEAST:
        found = f"{version} is installed" if version else "it is not installed"
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"quantized weights need {wanted}, and {found}", QUANTIZATION_KEY),
            fix=f"pip install '{wanted}', or leave --{QUANTIZATION_KEY} out",
        )


def loader_options(quantization: Quantization) -> dict[str, Any]:
    """Return the arguments for transformers' loader. Products are in float32 until `set_compute_dtype` changes that."""
    from transformers import BitsAndBytesConfig

    check_installed()
    options: dict[str, Any] = {"load_in_8bit": True}
    if quantization.bits == 4:
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": quantization.quant_type,
            "bnb_4bit_use_double_quant": quantization.double_quant,
            "bnb_4bit_compute_dtype": torch.float32,
        }
    # Without a device map, transformers would take the first GPU.
    return {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": str(torch.get_default_device())}}


def stabilize_layers(model: nn.Module) -> None:
    """Make quantized layers compute the same in train and eval mode, so that policy and reference can be equal.

    On a CPU with AVX-512, bitsandbytes repacks 4-bit weights at the first pass in eval mode; it then computes in
    bfloat16 and returns no gradients. 8-bit layers round activations in eval mode only, and lose their scales when DoRA
    reads their weights.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            # 8-bit layers stay in train mode, in which activations are not rounded.
            module.train()
            for name, method in (("train", _unmoved), ("init_8bit_state", _take_values)):
                module.__dict__[name] = MethodType(method, module)  # a bound method is copied with its module


def _unmoved(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replace `train` of an 8-bit layer: its mode stays as it is."""
    return module


def _take_values(module: Any) -> None:
    """Move values and scales from the weight to the layer's state; a weight that was moved before has no scales."""
    weight, state = module.weight, module.state
    state.CB, weight.CB = weight.CB, None
    if weight.SCB is not None:
        state.SCB, weight.SCB = weight.SCB, None


def set_compute_dtype(model: nn.Module, quantization: Quantization) -> None:
    """Set the data type in which 4-bit layers multiply."""
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and quantization.compute_dtype != "auto":
            module.compute_dtype = getattr(torch, quantization.compute_dtype)


def quantization_states(model: nn.Module) -> set[str]:
    """List the entries of a state dict that are no parameters or buffers: scales of quantized weights."""
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name for name in model.state_dict() if name not in named and not name.endswith("_extra_state")}
