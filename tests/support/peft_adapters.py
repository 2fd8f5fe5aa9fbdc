"""Adapters that peft itself makes, of every kind, new and trained before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dpo_lightning.dpo import DPOModule
from dpo_lightning.models.causal_lm import CausalLM, Lora, load_base

PLAIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "whole modules": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "new tokens": {"trainable_token_indices": [5, 7], "ensure_weight_tying": True},
}
"""Options of adapters that begin as nothing."""

STRANGE: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "random": {"init_lora_weights": False},
    "biases": {"bias": "all"},
}
"""Those that begin by moving the base, or something else, or train what stays when they are off."""


@dataclass(frozen=True)
class PeftBuilt(CausalLM):
    """A policy whose adapter comes from peft, whatever this package knows of its options."""

    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        from peft import LoraConfig, get_peft_model

        model = load_base(self.path, self.dtype, self.attention)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", **self.options)
        made = get_peft_model(model, config)
        if self.gradient_checkpointing:
            made.activation_checkpointing_enable({"use_reentrant": False})
        return made


def module(folder: Path, options: Mapping[str, Any], reference: Any = None, **policy: Any) -> DPOModule:
    """A run with such an adapter."""
    builder = PeftBuilt(str(folder), lora=Lora(r=2), options=options, **policy)
    return DPOModule(builder, reference=reference, learning_rate=1e-2)


def ready(folder: Path, options: Mapping[str, Any], reference: Any = None, **policy: Any) -> DPOModule:
    """The same, before its first step."""
    made = module(folder, options, reference, **policy)
    made.configure_model()
    return made


def trained(folder: Path, base: Path, options: Mapping[str, Any]) -> Path:
    """An adapter folder as another trainer would leave it."""
    made = PeftBuilt(str(base), options=options).build()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in made.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=draw)
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(folder)
    return folder


def flags(model: Any) -> dict[str, bool]:
    """What is trained, by name."""
    return {name: value.requires_grad for name, value in model.named_parameters()}
