"""A causal model in two parts: the backbone, and what makes logits of its hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dpo_lightning.log import logger
from dpo_lightning.models.probe import HALF_TOLERANCE, lacks_memory, undisturbed

TOLERANCE = 1e-5
"""Part of the largest logit by which the two parts may differ from the whole in float32."""

LARGE = 60.0
"""The largest logit of the trial."""


@dataclass(frozen=True)
class SplitHead:
    """Backbone and output embedding of a model, and what its own forward pass does to logits."""

    backbone: nn.Module
    """Token ids to hidden states."""

    output: nn.Module
    """Hidden states to logits: a linear layer, with its bias and its adapter where it has them."""

    vocabulary: int
    """Logits per token."""

    scale: float = 1.0
    """Logits are multiplied by this (Cohere; Granite divides)."""

    softcap: float | None = None
    """Logits become `softcap * tanh(logit / softcap)` (Gemma 2, arXiv:2408.00118)."""

    def hidden(self, **inputs: Any) -> Float[Tensor, "row position dim"]:
        """The last hidden states."""
        hidden: Tensor = self.backbone(**inputs).last_hidden_state
        return hidden

    def logits(self, hidden: Float[Tensor, "token dim"]) -> Float[Tensor, "token vocab"]:
        """Logits in the precision of the layer; where they are scaled or capped, in float32."""
        logits: Tensor = self.output(hidden)
        if self.scale != 1.0:
            logits = logits.float() * self.scale
        if self.softcap is not None:
            logits = (logits.float() / self.softcap).tanh() * self.softcap
        return logits

    def weights(self) -> list[Tensor]:
        """What is trained in the output layer."""
        return [parameter for parameter in self.output.parameters() if parameter.requires_grad]

    def repeatable(self) -> bool:
        """Not with dropout in the output layer, such as that of its adapter: it would be drawn anew."""
        return not any(isinstance(part, _DropoutNd) and part.training and part.p > 0 for part in self.output.modules())


def causal_lm(policy: nn.Module) -> Any:
    """The transformers model of a policy, below its adapter where it has one."""
    from peft import PeftModel

    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def find_head(policy: nn.Module) -> SplitHead | None:
    """Take a model apart, and look whether the parts give its own logits.

    Returns:
        The parts; nothing, with a printed reason, where the model does something to its logits that is not known here:
        they are then all made at once, by the model itself.
    """
    model = causal_lm(policy)
    config = model.config.get_text_config()
    output, backbone = model.get_output_embeddings(), model.get_decoder()
    if output is None or backbone is model or backbone is output:
        logger.info(f"note: {config.model_type} has no output layer of its own: logits are made whole")
        return None
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    head = SplitHead(
        backbone, output, config.vocab_size, scale, softcap=getattr(config, "final_logit_softcapping", None)
    )
    if gives_logits(head, model):
        return head
    logger.info(f"note: {config.model_type} does more to its logits than is known here: they are made whole")
    return None


def gives_logits(head: SplitHead, model: Any) -> bool:
    """Whether backbone and output layer give the logits of the whole model, tried on a few tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(head.vocabulary, (1, 8), generator=draw, device="cpu").to(model.device)
    with undisturbed(model), torch.compiler.set_stance("force_eager"):  # a trial is not worth a graph
        try:
            hidden = head.hidden(input_ids=ids, use_cache=False)
            # Logits of a size that no cap or scale leaves alone, so that one which is not known here shows.
            hidden = hidden * (LARGE / head.output(hidden).abs().max().clamp(min=1e-6)).to(hidden.dtype)
        except Exception as error:  # a model's own code may raise anything
            if lacks_memory(error):
                raise
            return False  # the model has layers between the two, such as a projection
        with returning(head.backbone, hidden):
            expected = model(input_ids=ids, use_cache=False).logits[0].float()
        found = head.logits(hidden[0]).float()
    part = TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
    return found.shape == expected.shape and float((found - expected).abs().max()) <= part * float(expected.abs().max())


@contextmanager
def returning(backbone: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Let a backbone end with other hidden states than its own for a while."""

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = hidden
        return output

    handle = backbone.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
