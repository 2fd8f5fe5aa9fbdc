"""Experts of a mixture that are fused into one tensor: what peft and float64 do not take, and how they go without."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

DIMENSIONS = 3
"""Dimensions of the weights of fused experts: expert, output, input."""

EAGER = "eager"
"""transformers' name of the implementation of experts that computes one after the other."""


def takes_dropout(model: Any, target_modules: str | list[str]) -> bool:
    """Whether peft gives these modules adapters with dropout: not where they are fused experts.

    It is tried on an empty copy of the model, as peft refuses in the midst of its changes.
    """
    from peft import LoraConfig, get_peft_model

    if not any(value.dim() == DIMENSIONS for value in model.parameters()):
        return True
    with torch.device("meta"):
        empty = type(model)(model.config)
    try:
        with expert_warnings_silenced():
            get_peft_model(empty, LoraConfig(task_type="CAUSAL_LM", target_modules=target_modules, lora_dropout=0.1))
    except ValueError as error:
        return "lora_dropout" not in str(error)
    return True


@contextmanager
def expert_warnings_silenced() -> Iterator[None]:
    """Silence the warning of peft that ranks of fused experts, which it has set itself, belong to no module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The following \w+_pattern keys did not match .*: \['\.\*")
        yield


@contextmanager
def experts_one_by_one(model: Any) -> Iterator[None]:
    """Compute the experts of a mixture one after the other: the grouped products of fused experts take no float64."""
    before = model.get_experts_implementation()
    if {*before.values()} <= {None, EAGER}:
        yield
        return
    model.set_experts_implementation(EAGER)
    try:
        yield
    finally:
        model.set_experts_implementation(before)
