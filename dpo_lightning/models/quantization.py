"""Frozen weights in 4 or 8 bits by bitsandbytes, below an adapter (QLoRA), and what that needs to train well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn

from dpo_lightning.errors import ExitCode, Problem, UserError

KEY = "model.policy.quantization"
LEAST = (0, 50, 2)
"""The first release of bitsandbytes with which this was tried; CPUs compute with it as well."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

HALVES: dict[str, Dtype] = {"bf16": "bfloat16", "16": "float16"}
"""What a `--trainer.precision` begins with, and what it computes in."""


@dataclass(frozen=True)
class Quantization:
    """The base's linear layers in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) or 8 (arXiv:2208.07339).

    Embeddings, norms and the output head stay whole, in float32. The weights are quantized while they are loaded.
    """

    bits: Literal[4, 8] = 4
    """Bits of a weight."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values of 4 bits: `nf4` has the quantiles of a normal distribution."""

    double_quant: bool = False
    """Quantize the scale of each 64 weights as well: 0.37 bits less for a weight of 4 bits."""

    compute_dtype: Dtype = "auto"
    """What 4 bits are turned into for a matrix product; `auto` follows `--trainer.precision`."""

    def __post_init__(self) -> None:
        """Refuse what 8 bits have no use for."""
        for name in ("quant_type", "double_quant", "compute_dtype"):
            if self.bits == 8 and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={getattr(self, name)} is for 4 bits", f"{KEY}.{name}"),
                    fix=f"leave {name} out, or --{KEY}.bits 4",
                )

    def under(self, precision: str) -> Quantization:
        """The same with `auto` settled by what the run computes in, as `--trainer.precision` has it."""
        if self.bits == 8 or self.compute_dtype != "auto":
            return self
        return replace(self, compute_dtype=HALVES.get(precision.partition("-")[0], "float32"))

    @property
    def exact(self) -> bool:
        """Whether products are those of float32; in 8 bits a GPU rounds what is multiplied, too."""
        return self.bits == 4 and self.compute_dtype in ("auto", "float32")

    def __str__(self) -> str:
        """All that moves a log-probability."""
        if self.bits == 8:
            return "8 bits"
        double = ", scales quantized" if self.double_quant else ""
        return f"4 bits {self.quant_type}{double}, computed in {self.compute_dtype.replace('auto', 'float32')}"


def check_installed() -> None:
    """See that bitsandbytes is there, before transformers asks for it in its own words.

    Raises:
        UserError: it is not, or too old.
    """
    wanted = "bitsandbytes>=" + ".".join(map(str, LEAST))
    try:
        version = metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        version = ""
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    if numbers < LEAST:
        found = f"{version} is here" if version else "it is not installed"
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"quantized weights need {wanted}, and {found}", KEY),
            fix=f"pip install '{wanted}', or leave --{KEY} out",
        )


def loading(quantization: Quantization) -> dict[str, Any]:
    """What transformers' loader is told. Products are those of float32 until `compute_in` says otherwise."""
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
    # Left out, transformers would take the first GPU, whatever the run is on.
    return {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": str(torch.get_default_device())}}


def steady(model: nn.Module) -> None:
    """Let quantized layers compute the same in every mode: policy and reference have to be one function.

    On a CPU with AVX-512, bitsandbytes repacks 4-bit weights at the first pass in eval mode, computes in bfloat16 from
    then on, and gives no gradient any more. Layers of 8 bits round activations in eval mode and not in train mode, and
    forget their scales when DoRA asks for their weights.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            module.train()
            for name, method in (("train", _unmoved), ("init_8bit_state", _take_values)):
                module.__dict__[name] = MethodType(method, module)  # a bound method is copied with its module


def _unmoved(module: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of `train`: the layer stays in the mode that it is in."""
    return module


def _take_values(module: Any) -> None:
    """Move values and scales from the weight to the layer's state; a weight that was moved has no scales of its own."""
    weight, state = module.weight, module.state
    state.CB, weight.CB = weight.CB, None
    if weight.SCB is not None:
        state.SCB, weight.SCB = weight.SCB, None


def compute_in(model: nn.Module, quantization: Quantization) -> None:
    """Let 4-bit layers multiply in what the run computes in."""
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and quantization.compute_dtype != "auto":
            module.compute_dtype = getattr(torch, quantization.compute_dtype)


def quantization_states(model: nn.Module) -> set[str]:
    """Names in a state dict that are neither parameters nor buffers: scales and tables of quantized weights."""
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name for name in model.state_dict() if name not in named and not name.endswith("_extra_state")}
