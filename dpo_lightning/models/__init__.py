"""The policy (`--model.policy`): causal language models, LoRA, quantization, and checks of model folders."""

from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.lora import Lora
from dpo_lightning.models.quantization import Quantization

__all__ = ["CausalLM", "Lora", "Quantization"]
