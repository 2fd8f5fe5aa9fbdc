"""`AdapterDisabled`: the policy with its adapter off, and whether that is its start: measured, not told by names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.logps import token_logps
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.models.probe import HALF_TOLERANCE
from dpo_lightning.references.base import KEY, ReferencePolicy, fingerprint, frozen_weights, probing
from dpo_lightning.references.weight_swap import exchanged, standing, trained_places

TOLERANCE = 1e-5
"""Nats per token by which rounding may tell a start from the policy without its adapter (DoRA scales by 1)."""


class AdapterDisabled(ReferencePolicy):
    """The policy with its fresh LoRA adapter switched off, so that nothing is held."""

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Check that switching the adapter off gives back the policy's starting point, and goes on to."""
        if builder.adapter_folder() is not None:
            raise UserError(
                ExitCode.CONFIG,
                Problem("the policy's adapter was trained before: without it the reference would be the base", KEY),
                fix="leave --model.reference out (a frozen copy of the adapter is held), or merge the adapter first",
            )
        if not has_adapter(policy):
            raise UserError(
                ExitCode.CONFIG,
                Problem("AdapterDisabled needs a new adapter to switch off", KEY),
                fix="leave --model.reference out (a whole model may get a new adapter by --model.policy.lora.r 16)",
            )
        off = off_start(policy)
        if not off <= TOLERANCE:
            raise UserError(
                ExitCode.CONFIG,
                Problem(f"without its adapter the policy is not its own start: {told(off)}", KEY),
                fix="leave --model.reference out (a frozen copy of the adapter's start is held)",
            )
        self._head = find_head(policy)
        self._nearness = HALF_TOLERANCE if builder.compile or off else 0.0
        self.remember(policy, fingerprint(frozen_weights(policy)))

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The policy itself, its adapter off."""
        with without_adapter(policy):
            yield policy


def has_adapter(policy: nn.Module) -> bool:
    """Whether an adapter is trained and not the whole model."""
    from peft import PeftModel

    return isinstance(policy, PeftModel)


def has_new_adapter(policy: nn.Module, builder: CausalLM) -> bool:
    """Whether the policy begins with an adapter that was never trained."""
    return has_adapter(policy) and builder.adapter_folder() is None


@contextmanager
def without_adapter(policy: nn.Module) -> Iterator[None]:
    """Switch a policy's adapter off for a while.

    peft then makes all of the adapter trainable, and what it replaces frozen; here everything stays as it was.
    """
    before = [(value, value.requires_grad) for value in policy.parameters()]
    try:
        with policy.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        for value, trained in before:
            if value.requires_grad != trained:
                value.requires_grad_(trained)


def off_start(policy: nn.Module) -> float:
    """By how many nats a token's log-probability differs from the policy's start once its adapter is switched off.

    Some starts move the base: PiSSA and its kin (arXiv:2404.02948) take out of it what they put into the adapter, and
    what is off is the rest. Some adapters train what stays when they are off, such as biases: all that is trained is
    put at NaN meanwhile, so that it would show.

    Returns:
        The largest difference; infinite where what is trained counts without the adapter as well.
    """
    places = trained_places(policy)
    strange = {
        name: nn.Parameter(value.detach().new_tensor(math.nan).expand(value.shape), requires_grad=False)
        for name, value in standing(places).items()
    }
    with probing(policy) as batch:
        start: Tensor = token_logps(policy, batch).values
        with exchanged(places, strange), without_adapter(policy):
            off = token_logps(policy, batch).values
    return float((off - start).abs().max().nan_to_num(nan=torch.inf))


def told(off: float) -> str:
    """The difference in words."""
    if math.isinf(off):
        return "the adapter trains weights that count without it, too"
    return f"its log-probabilities are off by up to {off:.2g} nats a token"
