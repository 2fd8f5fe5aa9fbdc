"""Runs on weights in 4 and 8 bits, and which of their layers are quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from dpo_lightning.dpo import DPOModule
from dpo_lightning.models.causal_lm import Lora, Quantization
from support import short_runs

FOUR, DOUBLE, EIGHT = Quantization(), Quantization(double_quant=True), Quantization(bits=8)
BOTH = pytest.mark.parametrize("quantization", [DOUBLE, EIGHT], ids=str)
LINEAR = {4: Linear4bit, 8: Linear8bitLt}


def quantized_layers(model: Any, quantization: Quantization) -> set[str]:
    """Names of the layers in so many bits."""
    return {name for name, part in model.named_modules() if isinstance(part, LINEAR[quantization.bits])}


def ready(folder: Path, quantization: Quantization, **options: Any) -> DPOModule:
    """A policy below a new adapter, before its first step."""
    return short_runs.ready(folder, **{"lora": Lora(r=2), "quantization": quantization} | options)
