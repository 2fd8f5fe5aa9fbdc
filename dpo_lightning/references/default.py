"""`default_reference`: the reference for a policy where `--model.reference` is left out."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.references.adapter_disabled import (
    AdapterDisabled,
    describe_distance,
    distance_from_start,
    has_adapter,
)
from dpo_lightning.references.base import ReferencePolicy
from dpo_lightning.references.frozen import FrozenAdapter, FrozenCopy
from dpo_lightning.references.reference_free import ReferenceFree


class Choice(NamedTuple):
    """A reference, and the reason why it was chosen."""

    reference: ReferencePolicy
    reason: str


def default_reference(policy: nn.Module, builder: CausalLM, *, reference_free: bool = False) -> Choice:
    """Choose the reference that equals the policy before its first step and takes the least memory.

    Args:
        policy: the model to be trained, before its first step.
        builder: what it was built from.
        reference_free: whether the loss uses no reference.
    """
    if reference_free:
        return Choice(ReferenceFree(), "the loss uses no reference")
    if not has_adapter(policy):
        return Choice(FrozenCopy(), "all of the policy's weights are trained")
    if builder.adapter_folder() is not None:
        return Choice(
            FrozenAdapter(), "the adapter was trained before: with it disabled, the policy would be the base model"
        )
    off = distance_from_start(policy)
    if not off:
        return Choice(AdapterDisabled(), "with its new adapter disabled, the policy equals its start")
    return Choice(
        FrozenAdapter(), f"with its adapter disabled, the policy differs from its start: {describe_distance(off)}"
    )
