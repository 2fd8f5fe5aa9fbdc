"""`FrozenCopy` and `FrozenAdapter`: references that hold a start of their own, whole or as far as it is trained."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.models.attention import takes_trees
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.models.compilation import compile_layers
from dpo_lightning.models.dropout import without_dropout
from dpo_lightning.models.lm_head import causal_lm, find_head
from dpo_lightning.models.probe import HALF_TOLERANCE
from dpo_lightning.references.adapter_disabled import has_adapter, has_new_adapter
from dpo_lightning.references.base import KEY, ReferencePolicy, check_same_tokenizer, fingerprint, frozen_weights
from dpo_lightning.references.weight_swap import Place, exchanged, standing, trained_places


class HeldStart(ReferencePolicy):
    """A reference with weights of its own, which meet neither optimizer nor checkpoint nor gradient synchronisation.

    They are no registered parameters: they follow the policy between devices and dtypes, and that is all.
    """

    @abstractmethod
    def moving(self, policy: nn.Module) -> Mapping[str, Tensor]:
        """What training moves, by the names that the own weights have."""


class FrozenCopy(HeldStart):
    """A copy of the policy as it was before its first step, or another model given by `path`."""

    def __init__(self, path: str | None = None) -> None:
        """Choose the weights.

        Args:
            path: a model or adapter folder or a hub id to compare with; the policy's own start where it is left out.
        """
        super().__init__()
        self.path = path
        self._held: list[nn.Module] = []

    @property
    def starts_equal(self) -> bool:
        """Only where no other model was named."""
        return self.path is None

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Copy the policy, or load the model that was named."""
        if self.path is None:
            model = copy.deepcopy(policy)
        else:
            other = CausalLM(self.path, builder.dtype, builder.attention, quantization=builder.quantization)
            check_same_tokenizer(builder, other, "path")
            model = other.build()
        without_dropout(model)
        self._held = [model.eval().requires_grad_(False)]
        self._head = find_head(model)
        if builder.compile:
            compile_layers(causal_lm(model))
            self._nearness = HALF_TOLERANCE
        # A new adapter has random weights that another start may not draw again: what they come to is probed.
        fresh = self.path is None and has_new_adapter(policy, builder)
        self.remember(policy, fingerprint(frozen_weights(policy if fresh else model)))

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The copy."""
        yield self._held[0]

    def takes_trees(self) -> bool:
        """As the copied or named model does."""
        return takes_trees(causal_lm(self._held[0]))

    def named(self) -> Mapping[str, Tensor]:
        """All weights and buffers of the copy."""
        return {**dict(self._held[0].named_parameters()), **dict(self._held[0].named_buffers())}

    def moving(self, policy: nn.Module) -> Mapping[str, Tensor]:
        """Trained weights, a tied one once, and the buffers that a model is saved with."""
        saved = policy.state_dict().keys()
        trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
        return {**trained, **{name: value for name, value in policy.named_buffers() if name in saved}}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenCopy:
        for model in self._held:
            model._apply(fn, recurse)
        return super()._apply(fn, recurse)


class FrozenAdapter(HeldStart):
    """A frozen copy of the adapter that the policy starts with, over the policy's own base.

    It holds all that is trained and no more: low-rank matrices, magnitudes, whole modules, new tokens. During a forward
    pass the copies hang in the model in the place of the trained weights, so that both run the same code; the trained
    ones, their gradients and what the optimizer knows of them are not touched.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        super().__init__()
        self._places: dict[str, list[Place]] = {}
        self._held: dict[str, nn.Parameter] = {}

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Copy what is trained."""
        if not has_adapter(policy):
            raise UserError(
                ExitCode.CONFIG,
                Problem("FrozenAdapter needs an adapter to copy, and all weights are trained", KEY),
                fix="leave --model.reference out (a frozen copy is taken), or --model.policy.lora.r 16",
            )
        self._places = trained_places(policy)
        self._held = {
            name: nn.Parameter(value.detach().clone(), requires_grad=False)
            for name, value in standing(self._places).items()
        }
        self._head = find_head(policy)
        self._nearness = HALF_TOLERANCE if builder.compile else 0.0
        # A new adapter has random weights that another start may not draw again: what they come to is probed.
        trained = () if has_new_adapter(policy, builder) else self._held.items()
        self.remember(policy, fingerprint([*frozen_weights(policy), *trained]))

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The policy, its starting adapter in the place of the trained one."""
        with exchanged(self._places, self._held):
            yield policy

    def named(self) -> Mapping[str, Tensor]:
        """The adapter's weights."""
        return self._held

    def moving(self, policy: nn.Module) -> Mapping[str, Tensor]:
        """The trained adapter's."""
        return standing(self._places)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenAdapter:
        self._held = {name: nn.Parameter(fn(value.data), requires_grad=False) for name, value in self._held.items()}
        return super()._apply(fn, recurse)
