"""A causal model in two parts: the backbone, and the output layer that turns hidden states into logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dpo_lightning.errors import lacks_memory
from dpo_lightning.log import logger
from dpo_lightning.models.probe import HALF_TOLERANCE, draw_ids, trial

LOGIT_TOLERANCE = 1e-5
"""Largest float32 difference between the two parts and the whole model, as a fraction of the largest absolute logit."""

LARGE = 60.0
"""Largest absolute logit of the trial, at which any scale or softcap shows."""


@dataclass(frozen=True)
class SplitHead:
    """Backbone and output layer of a model, and what its own forward pass does to logits."""

    backbone: nn.Module
    """Token ids to hidden states."""

    output: nn.Module
    """Hidden states to logits: a linear layer, with bias and adapter if it has them."""

    vocabulary: int
    """Number of logits per token."""

    scale: float = 1.0
    """Logits are multiplied by this (Cohere; the reciprocal of Granite's divisor)."""

    softcap: float | None = None
    """Logits become `softcap * tanh(logit / softcap)` (Gemma 2, arXiv:2408.00118)."""

    def hidden(self, **inputs: Any) -> Float[Tensor, "row position dim"]:
        """Compute the backbone's last hidden states."""
        hidden: Tensor = self.backbone(**inputs).last_hidden_state
        return hidden

    def logits(self, hidden: Float[Tensor, "token dim"]) -> Float[Tensor, "token vocab"]:
        """Compute logits in the precision of the output layer; scaled or capped ones in float32."""
        logits: Tensor = self.output(hidden)
        if self.scale != 1.0:
            logits = logits.float() * self.scale
        if self.softcap is not None:
            logits = (logits.float() / self.softcap).tanh() * self.softcap
        return logits

    def weights(self) -> list[Tensor]:
        """Return the trained parameters of the output layer."""
        return [parameter for parameter in self.output.parameters() if parameter.requires_grad]

    def is_repeatable(self) -> bool:
        """Whether a second pass gives the same logits: not with active dropout in the output layer's adapter."""
        return not any(isinstance(part, _DropoutNd) and part.training and part.p > 0 for part in self.output.modules())


def causal_lm(policy: nn.Module) -> Any:
    """Return the transformers model of a policy, below its adapter if it has one."""
    from peft import PeftModel

    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def sharding_units(policy: nn.Module) -> set[str]:
    """Return the class names of the layers that are sharded one by one: those that transformers keeps on one device."""
    return set(causal_lm(policy)._no_split_modules or ())


def find_head(policy: nn.Module) -> SplitHead | None:
    """Split a model into backbone and output layer, and check that the parts give the model's own logits.

    Returns:
        The parts; None, with a line in the log, if the model changes its logits in an unknown way. The model then
            computes
        all logits itself, at once.
    """
    model = causal_lm(policy)
    config = model.config.get_text_config()
    output, backbone = model.get_output_embeddings(), model.get_decoder()
    if output is None or backbone is model or backbone is output:
        logger.info(f"note: {config.model_type} has no separate output layer; all logits are computed at once")
        return None
    # Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`.
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    head = SplitHead(
        backbone, output, config.vocab_size, scale, softcap=getattr(config, "final_logit_softcapping", None)
    )
    if gives_logits(head, model):
        return head
    logger.info(f"note: {config.model_type} changes its logits in an unknown way; all logits are computed at once")
    return None


def gives_logits(head: SplitHead, model: Any) -> bool:
    """Whether backbone and output layer give the logits of the whole model on a few tokens."""
    ids = draw_ids(head.vocabulary, 1, 8).to(model.device)
    with trial(model):
        try:
            hidden = head.hidden(input_ids=ids, use_cache=False)
            # Scale hidden states until an unknown softcap or scale would change the logits visibly.
            hidden = hidden * (LARGE / head.output(hidden).abs().max().clamp(min=1e-6)).to(hidden.dtype)
        except Exception as error:  # a model's own code may raise anything
            if lacks_memory(error):
                raise
            return False  # there are layers between the two, such as a projection
        with replace_hidden(head.backbone, hidden):
            expected = model(input_ids=ids, use_cache=False).logits[0].float()
        found = head.logits(hidden[0]).float()
    part = LOGIT_TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
    return found.shape == expected.shape and float((found - expected).abs().max()) <= part * float(expected.abs().max())


@contextmanager
def replace_hidden(backbone: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Replace the last hidden states that a backbone returns within the block."""

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = hidden
        return output

    handle = backbone.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
