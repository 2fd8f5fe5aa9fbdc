"""The load-balancing loss of a mixture of experts: for the policy's training passes only."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.models.probe import FLOAT32_TOLERANCE, HALF_TOLERANCE, draw_ids, exact_mode

KEY = "model.policy.router_aux_loss_coef"


def check_coefficient(given: float | None) -> None:
    """Refuse a coefficient that is negative or not finite.

    Raises:
        UserError: 64, it is.
    """
    if given is not None and not (math.isfinite(given) and given >= 0):
        raise UserError(
            ExitCode.CONFIG,
            Problem(f"router_aux_loss_coef={given} must be 0 or more", KEY),
            fix=f"--{KEY} 0 or more, such as 0.001",
        )


def router_coefficient(given: float | None, config: Any) -> float:
    """Choose the coefficient of a model's load-balancing loss, and log it; 0 leaves the loss out.

    Args:
        given: the option.
        config: the model's configuration. If the option is left out and `output_router_logits` is set, its coefficient
            is used, as in transformers.

    Raises:
        UserError: the model has no experts, or the coefficient is negative or not finite.
    """
    config = config.get_text_config()
    enabled = getattr(config, "output_router_logits", None)
    check_coefficient(given)
    if enabled is None:
        if given is not None:
            raise router_loss_error(config, f"router_aux_loss_coef={given}, but {config.model_type} has no routers")
        return 0.0
    own = getattr(config, "router_aux_loss_coef", getattr(config, "aux_loss_coef", 0.0))
    chosen = (own if enabled else 0.0) if given is None else given
    if chosen:
        source = "the model config" if given is None else "given"
        logger.info(f"router loss: {chosen:g} x the load-balancing loss ({source})")
    elif given is None:
        logger.info(f"router loss: none (off in the model config; --{KEY} {own or 0.001:g} adds it)")
    return chosen


class RouterLoss:
    """A model's own load-balancing loss, for the forward pass from which a training step takes its gradient.

    It is computed per micro-batch and averaged over a window and over ranks by the weight of their rows. Each token
    that the model computes counts once: a shared prefix counts once for all its answers, and padding never. Neither the
    reference nor an evaluation computes it.
    """

    def __init__(self, model: Any, coefficient: float) -> None:
        """Check that the loss computed here equals the model's own on a few tokens.

        Args:
            model: a transformers model with experts.
            coefficient: factor of the loss.

        Raises:
            UserError: the model computes its load-balancing loss differently.
        """
        self.model, self.coefficient = model, coefficient
        self._code = sys.modules[type(model).__module__]  # a sharded model has a class of torch's
        self.last: tuple[Tensor, Tensor] | None = None
        """Loss of the last micro-batch without the coefficient, and the micro-batch's weight."""
        self._mask = torch.zeros(0, dtype=torch.bool)
        self._recorded: list[tuple[Tensor, ...]] = []
        self._handles: list[Any] = []
        try:
            off = self._difference()
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            problem = next(iter(str(error).splitlines()), repr(error))
            raise router_loss_error(
                model.config, f"the load-balancing loss of {type(model).__name__}: {problem}"
            ) from None
        if not off <= (FLOAT32_TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE):  # NaN as well
            raise router_loss_error(
                model.config,
                f"the load-balancing loss of {type(model).__name__} is not reproduced: it differs by {off:.2g}",
            )

    def _difference(self) -> float:
        """Return how far this loss is from the model's own on a few tokens."""
        ids = draw_ids(self.model.config.get_text_config().vocab_size, 1, 8).to(self.model.device)
        inputs: dict[str, Any] = {"input_ids": ids, "output_router_logits": True, "use_cache": False}
        with exact_mode(self.model):
            own = self.model(**inputs, attention_mask=torch.ones_like(ids)).aux_loss
            found = self.balance(self.model.get_decoder()(**inputs).router_logits, torch.ones_like(ids) > 0)
        return abs(float(found) - float(own))

    def balance(self, router_logits: tuple[Tensor, ...], mask: Bool[Tensor, "row position"]) -> Float[Tensor, ""]:
        """Compute the loss over the tokens of a mask by the model's own function."""
        # The function is in the model's own module, under the same name in every architecture.
        function = vars(self._code)["load_balancing_loss_func"]
        found: Tensor = function(router_logits, self.model.num_experts, self.model.num_experts_per_tok, mask)
        return found

    def watch(self, mask: Bool[Tensor, "row position"]) -> None:
        """Record the router logits of the next forward pass with gradients, whose batch has this mask."""
        self._release()
        self._mask = mask
        backbone = self.model.get_decoder()
        self._handles = [
            backbone.register_forward_pre_hook(request_router_logits, with_kwargs=True),
            backbone.register_forward_hook(self._record),
        ]

    def add_to(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Add the recorded loss, times its coefficient, to each loss of the micro-batch."""
        self._release()
        assert len(self._recorded) == 1, f"{len(self._recorded)} forward passes with gradients instead of one"
        balance = self.balance(self._recorded.pop(), self._mask)
        self.last = balance.detach(), weights.detach().sum()
        return losses + self.coefficient * balance

    def _record(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._recorded.append(output.router_logits)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def request_router_logits(module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Request router logits in passes with gradients; a forward pre-hook."""
    return args, options | ({"output_router_logits": True} if torch.is_grad_enabled() else {})


def router_loss_error(config: Any, what: str) -> UserError:
    """Make the error for a model without a load-balancing loss that could be added."""
    return UserError(
        ExitCode.CONFIG, Problem(what, KEY), fix=f"leave --{KEY} out (0 where config.json sets output_router_logits)"
    )
