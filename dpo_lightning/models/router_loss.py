"""The load-balancing loss of a mixture of experts: of the policy's training passes, and of no others."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dpo_lightning.log import logger
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.probe import HALF_TOLERANCE, TOLERANCE, undisturbed

KEY = "model.policy.router_aux_loss_coef"


def router_coefficient(given: float | None, config: Any) -> float:
    """What a model's load-balancing loss is multiplied by; 0 leaves it out. What is taken is said.

    Args:
        given: the option.
        config: the model's own configuration: where nothing was given, its coefficient counts if it asks for the
            routers' logits (`output_router_logits`), as it does in transformers.

    Raises:
        UserError: a coefficient for a model without experts, or one that is none.
    """
    config = config.get_text_config()
    asked = getattr(config, "output_router_logits", None)
    if given is not None and not (math.isfinite(given) and given >= 0):
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"router_aux_loss_coef={given} is no coefficient", KEY),
            fix=f"--{KEY} 0 or more, such as 0.001",
        )
    if asked is None:
        if given is not None:
            raise no_balance(config, f"router_aux_loss_coef={given}: {config.model_type} has no routers to balance")
        return 0.0
    own = getattr(config, "router_aux_loss_coef", getattr(config, "aux_loss_coef", 0.0))
    chosen = (own if asked else 0.0) if given is None else given
    if chosen:
        logger.info(f"router loss: {chosen:g} x the load-balancing loss ({'the model config' if given is None else 'given'})")
    elif given is None:
        logger.info(f"router loss: none (output_router_logits is off in the model config; --{KEY} {own or 0.001:g} adds it)")
    return chosen


class RouterLoss:
    """A model's own load-balancing loss, of the forward pass that a training step takes its gradient from.

    It is that of a micro-batch: those of a window are averaged by the weight of their rows, and so are the ranks'. Each
    token that the model computes counts once: in layouts that share prefixes, a prompt counts once for all its answers,
    and padding never does. Neither a reference nor an evaluation computes it.
    """

    def __init__(self, model: Any, coefficient: float) -> None:
        """Take the function that the model's own forward pass calls, and see that it gives the same.

        Args:
            model: a transformers model with experts.
            coefficient: what the loss is multiplied by.

        Raises:
            UserError: the model balances its experts in a way that is not known here.
        """
        self.model, self.coefficient = model, coefficient
        self.last: tuple[Tensor, Tensor] | None = None
        """The loss of the last micro-batch before it is multiplied, and the micro-batch's weight."""
        self._mask = torch.zeros(0, dtype=torch.bool)
        self._noted: list[tuple[Tensor, ...]] = []
        self._handles: list[Any] = []
        try:
            off = self._difference()
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            problem = next(iter(str(error).splitlines()), repr(error))
            raise no_balance(model.config, f"the load-balancing loss of {type(model).__name__}: {problem}") from None
        if not off <= (TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE):  # NaN as well
            raise no_balance(model.config, f"the load-balancing loss of {type(model).__name__} is off by {off:.2g}")

    def _difference(self) -> float:
        """How far this loss is from the model's own on a few tokens."""
        ids = torch.arange(8, device=self.model.device)[None] % self.model.config.get_text_config().vocab_size
        inputs: dict[str, Any] = {"input_ids": ids, "output_router_logits": True, "use_cache": False}
        with undisturbed(self.model):
            own = self.model(**inputs, attention_mask=torch.ones_like(ids)).aux_loss
            found = self.balance(self.model.get_decoder()(**inputs).router_logits, torch.ones_like(ids) > 0)
        return abs(float(found) - float(own))

    def balance(self, router_logits: tuple[Tensor, ...], mask: Bool[Tensor, "row position"]) -> Float[Tensor, ""]:
        """The loss of the tokens of a mask, by the model's own function."""
        function = vars(sys.modules[type(self.model).__module__])["load_balancing_loss_func"]
        found: Tensor = function(router_logits, self.model.num_experts, self.model.num_experts_per_tok, mask)
        return found

    def watch(self, mask: Bool[Tensor, "row position"]) -> None:
        """Note the routers' logits of the next forward pass with a gradient, that of a batch with this mask."""
        self._release()
        self._mask = mask
        backbone = self.model.get_decoder()
        self._handles = [
            backbone.register_forward_pre_hook(ask, with_kwargs=True),
            backbone.register_forward_hook(self._note),
        ]

    def added(self, losses: Tensor, weights: Tensor) -> Tensor:
        """The losses of a micro-batch with this one, multiplied by its coefficient, on top of each."""
        self._release()
        assert len(self._noted) == 1, f"{len(self._noted)} forward passes with a gradient, and not one"
        balance = self.balance(self._noted.pop(), self._mask)
        self.last = balance.detach(), weights.detach().sum()
        return losses + self.coefficient * balance

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._noted.append(output.router_logits)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def ask(module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let a pass with a gradient give the routers' logits as well."""
    return args, options | ({"output_router_logits": True} if torch.is_grad_enabled() else {})


def no_balance(config: Any, what: str) -> UserError:
    """The error for a model without a load-balancing loss that could be added."""
    return UserError(
        ExitCode.CONFIG, Problem(what, KEY), fix=f"leave --{KEY} out (0 where config.json sets output_router_logits)"
    )
