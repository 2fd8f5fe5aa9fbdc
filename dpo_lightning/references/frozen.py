"""`FrozenCopy` and `FrozenAdapter`: references that hold the starting weights, all of them or the trained ones."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.attention_backend import takes_trees
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.compilation import compile_layers
from dpo_lightning.models.dropout import without_dropout
from dpo_lightning.models.lm_head import causal_lm, find_head
from dpo_lightning.models.probe import HALF_TOLERANCE
from dpo_lightning.references.adapter_disabled import has_adapter, has_new_adapter
from dpo_lightning.references.base import (
    REFERENCE_KEY,
    ReferencePolicy,
    check_same_tokenizer,
    fingerprint,
    frozen_weights,
)
from dpo_lightning.references.weight_swap import Place, copy_parameters, current_parameters, find_trained, swapped


class HeldStart(ReferencePolicy):
    """A reference with weights of its own, which no optimizer, checkpoint or gradient synchronization sees.

    They are not registered as parameters. `_apply` moves them with the policy between devices and dtypes.
    """

    @abstractmethod
    def trained_state(self, policy: nn.Module) -> Mapping[str, Tensor]:
        """Return the policy's tensors that training changes, under the names that `held_weights` uses."""


class FrozenCopy(HeldStart):
    """A copy of the policy as it was before its first step, or another model given by `path`."""

    def __init__(self, path: str | None = None) -> None:
        """Choose the weights.

        Args:
            path: folder of a model or adapter, or a hub id, to compare with; the policy's own start if left out.
        """
        super().__init__()
        self.path = path
        self._held: list[nn.Module] = []

    @property
    def equals_start(self) -> bool:
        """Whether the copy is one of the policy, and not another model given by `path`."""
        return self.path is None

    @property
    def model_path(self) -> str | None:
        """The path of the other model, if one is given."""
        return self.path

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Copy the policy, or load the model given by `path`."""
        if self.path is None:
            # Before both are sharded, the copy takes no memory: its parameters have the storage of the policy's.
            model = copy.deepcopy(policy, shared_parameters(policy) if self.sharded else None)
        else:
            other = CausalLM(self.path, builder.dtype, builder.attention, quantization=builder.quantization)
            check_same_tokenizer(builder, other, "path")
            model = other.build()
        without_dropout(model)
        self._held = [model.eval().requires_grad_(False)]
        self._head = find_head(model)
        if builder.compile:
            compile_layers(causal_lm(model))
            self._start_tolerance = HALF_TOLERANCE
        # A new adapter is initialized randomly, maybe differently when the run is resumed: its weights are left out of
        # the digest, and the probe's log-probabilities show whether the function is the same.
        fresh = self.path is None and has_new_adapter(policy, builder)
        self.record_identity(policy, fingerprint(frozen_weights(policy if fresh else model)))

    def shard(self, policy: nn.Module, shard_model: Callable[[nn.Module], None]) -> None:
        """Shard the copy or the other model."""
        shard_model(self._held[0])

    @contextmanager
    def as_model(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the frozen copy, in eval mode."""
        yield self._held[0]

    def takes_trees(self) -> bool:
        """Whether the copied or loaded model computes correctly for packed rows and shared prefixes."""
        return takes_trees(causal_lm(self._held[0]))

    def held_weights(self) -> Mapping[str, Tensor]:
        """Return all parameters and buffers of the copy."""
        return {**dict(self._held[0].named_parameters()), **dict(self._held[0].named_buffers())}

    def trained_state(self, policy: nn.Module) -> Mapping[str, Tensor]:
        """Return trained parameters, a tied one once, and the buffers that a state dict holds."""
        saved = policy.state_dict().keys()
        trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
        return {**trained, **{name: value for name, value in policy.named_buffers() if name in saved}}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenCopy:
        # Called by `.to()`, `.half()` and so on; the copy is not registered as a submodule.
        for model in self._held:
            model._apply(fn, recurse)
        return super()._apply(fn, recurse)


class FrozenAdapter(HeldStart):
    """A frozen copy of the adapter that the policy starts with, over the policy's own base weights.

    It holds what is trained and nothing else: low-rank matrices, magnitudes, whole modules, new token embeddings.
    During a forward pass the copies replace the trained parameters inside the policy, so that both run the same code.
    The trained parameters, their gradients and the optimizer's state are not touched.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, list[Place]] = {}
        self._held: dict[str, nn.Parameter] = {}

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Copy the trained parameters.

        Raises:
            UserError: the policy has no adapter.
        """
        if not has_adapter(policy):
            raise UserError(
                ExitCode.CONFIG,
                Problem("FrozenAdapter needs an adapter to copy, but all weights are trained", REFERENCE_KEY),
                fix="leave --model.reference out (FrozenCopy is then used), or add --model.policy.lora.r 16",
            )
        self._places = find_trained(policy)
        self._held = copy_parameters(self._places)
        self._head = find_head(policy)
        self._start_tolerance = HALF_TOLERANCE if builder.compile else 0.0
        # A new adapter is initialized randomly, maybe differently when the run is resumed: its weights are left out of
        # the digest, and the probe's log-probabilities show whether the function is the same.
        trained = () if has_new_adapter(policy, builder) else self._held.items()
        self.record_identity(policy, fingerprint([*frozen_weights(policy), *trained]))

    def shard(self, policy: nn.Module, shard_model: Callable[[nn.Module], None]) -> None:
        """Copy the trained parameters again, now split as the policy's are."""
        self._held = copy_parameters(self._places)

    @contextmanager
    def as_model(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Yield the policy, with the starting adapter in place of the trained one."""
        with swapped(self._places, self._held):
            yield policy

    def held_weights(self) -> Mapping[str, Tensor]:
        """Return the copies of the adapter's parameters."""
        return self._held

    def trained_state(self, policy: nn.Module) -> Mapping[str, Tensor]:
        """Return the policy's current adapter parameters."""
        return current_parameters(self._places)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenAdapter:
        self._held = {name: nn.Parameter(fn(value.data), requires_grad=False) for name, value in self._held.items()}
        return super()._apply(fn, recurse)


def shared_parameters(model: nn.Module) -> dict[int, Any]:
    """Return the memo with which `copy.deepcopy` makes a frozen model on the parameters of another one.

    Quantized parameters are handed on as they are: their scales are attributes.
    """
    return {
        id(value): nn.Parameter(value.detach(), requires_grad=False) if value.is_floating_point() else value
        for value in model.parameters()
    }
