"""`AdapterDisabled`: the policy with its adapter disabled, after a test that this equals the policy's start."""

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
from dpo_lightning.references.base import REFERENCE_KEY, ReferencePolicy, fingerprint, frozen_weights, policy_probe
from dpo_lightning.references.weight_swap import current_parameters, find_trained, swapped

START_ROUNDING = 1e-5
"""Nats per token by which rounding may separate policy and disabled adapter at the start (DoRA multiplies by a ratio of
norms).
"""


class AdapterDisabled(ReferencePolicy):
    """The policy with its new LoRA adapter disabled. No second set of weights is held."""

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Check that disabling the adapter gives the policy's starting point now and for the whole run.

        Raises:
            UserError: there is no new adapter, or the policy with it disabled differs from its start.
        """
        if builder.adapter_folder() is not None:
            raise UserError(
                ExitCode.CONFIG,
                Problem(
                    "the adapter was trained before: with it disabled, the reference would be the base model",
                    REFERENCE_KEY,
                ),
                fix="leave --model.reference out (FrozenAdapter is then used), or merge the adapter first",
            )
        if not has_adapter(policy):
            raise UserError(
                ExitCode.CONFIG,
                Problem("AdapterDisabled needs a new adapter to disable", REFERENCE_KEY),
                fix="leave --model.reference out, or add an adapter: --model.policy.lora.r 16",
            )
        off = distance_from_start(policy)
        if not off <= START_ROUNDING:
            raise UserError(
                ExitCode.CONFIG,
                Problem(
                    f"with its adapter disabled, the policy differs from its start: {describe_distance(off)}",
                    REFERENCE_KEY,
                ),
                fix="leave --model.reference out (FrozenAdapter is then used)",
            )
        self._head = find_head(policy)
        self._start_tolerance = HALF_TOLERANCE if builder.compile or off else 0.0
        self.record_identity(policy, fingerprint(frozen_weights(policy)))

    @contextmanager
    def as_model(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the policy itself, with its adapter disabled."""
        with without_adapter(policy):
            yield policy


def has_adapter(policy: nn.Module) -> bool:
    """Whether a peft adapter is trained, and not the whole model."""
    from peft import PeftModel

    return isinstance(policy, PeftModel)


def has_new_adapter(policy: nn.Module, builder: CausalLM) -> bool:
    """Whether the policy starts with a newly initialized adapter, not with a trained one."""
    return has_adapter(policy) and builder.adapter_folder() is None


@contextmanager
def without_adapter(policy: nn.Module) -> Iterator[None]:
    """Disable a policy's adapter within the block.

    peft's `disable_adapter` changes `requires_grad` of adapter and base weights when it ends; here it is restored.
    """
    before = [(value, value.requires_grad) for value in policy.parameters()]
    try:
        with policy.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        for value, trained in before:
            if value.requires_grad != trained:
                value.requires_grad_(trained)


def distance_from_start(policy: nn.Module) -> float:
    """Measure by how many nats per token the policy with its adapter disabled differs from its start.

    PiSSA-like initializations (arXiv:2404.02948) subtract the initial adapter from the base weights, so the base alone
    is not the start. Other adapters train parameters that stay active when the adapter is disabled, such as biases. To
    detect those, all trained parameters are replaced by NaN before the adapter is disabled.

    Returns:
        The largest difference; infinite if a trained parameter counts without the adapter.
    """
    places = find_trained(policy)
    # Expanded views, which take no memory.
    nan = {
        name: nn.Parameter(value.detach().new_tensor(math.nan).expand(value.shape), requires_grad=False)
        for name, value in current_parameters(places).items()
    }
    with policy_probe(policy) as batch:
        start: Tensor = token_logps(policy, batch).values
        with swapped(places, nan), without_adapter(policy):
            off = token_logps(policy, batch).values
    return float((off - start).abs().max().nan_to_num(nan=torch.inf))


def describe_distance(off: float) -> str:
    """Format the result of `distance_from_start` for a message."""
    if math.isinf(off):
        return "it trains weights that stay active with the adapter disabled"
    return f"log-probabilities differ by up to {off:.2g} nats per token"
