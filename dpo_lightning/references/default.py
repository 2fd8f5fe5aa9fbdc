"""Which reference a policy needs: by what it is, as measured, and with the reason."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.references.adapter_disabled import AdapterDisabled, has_adapter, off_start, told
from dpo_lightning.references.base import ReferencePolicy
from dpo_lightning.references.frozen import FrozenAdapter, FrozenCopy
from dpo_lightning.references.reference_free import ReferenceFree


class Choice(NamedTuple):
    """A reference, and why it is this one."""

    reference: ReferencePolicy
    reason: str


def default_reference(policy: nn.Module, builder: CausalLM, *, reference_free: bool = False) -> Choice:
    """The reference that a policy needs before its first step, and a loss."""
    if reference_free:
        return Choice(ReferenceFree(), "the loss asks none")
    if not has_adapter(policy):
        return Choice(FrozenCopy(), "all of the policy's weights are trained")
    if builder.adapter_folder() is not None:
        return Choice(FrozenAdapter(), "the adapter was trained before: without it the policy would be its base")
    off = off_start(policy)
    if not off:
        return Choice(AdapterDisabled(), "without its new adapter the policy is its own start")
    return Choice(FrozenAdapter(), f"without its adapter the policy is not its own start: {told(off)}")
