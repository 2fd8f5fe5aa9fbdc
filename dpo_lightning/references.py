"""The policy that DPO measures against: a frozen copy, or the policy itself with its adapter switched off."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.heads import SplitHead, causal_lm, find_head
from dpo_lightning.kernels import HALF_TOLERANCE, compile_layers, takes_trees
from dpo_lightning.logps import Scored, score, scored_positions
from dpo_lightning.models import CausalLM, without_dropout
from dpo_lightning.types import Batch, SequenceLogps, Statistic

KEY = "model.reference"


class ReferencePolicy(nn.Module, ABC):
    """What a policy is compared with. It has no gradient, no place in a checkpoint, and a digest that is in it."""

    def __init__(self) -> None:
        """Start unbound."""
        super().__init__()
        self._digest = ""
        self._head: SplitHead | None = None
        self._nearness = 0.0

    @abstractmethod
    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Take what is needed from the policy before its first step.

        Raises:
            UserError: this reference would not be the policy's starting point.
        """

    @abstractmethod
    def activated(self, policy: nn.Module) -> Any:
        """A context in which the yielded model is the reference."""

    @property
    def starts_equal(self) -> bool:
        """Whether policy and reference are the same function at the first step."""
        return True

    @property
    def nearness(self) -> float:
        """By how much log-probabilities may differ at such a start: nats per scored token, and part of a sum.

        Nothing where both run the same kernels on the same batch; compiled graphs with and without gradients differ.
        """
        return self._nearness

    @property
    def live(self) -> bool:
        """Whether there is a model to ask, for answers as well."""
        return True

    def takes_trees(self) -> bool:
        """Whether the reference can be asked in every layout."""
        return True

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Log-probabilities under the reference, without a gradient; the policy runs in the same layout and kernels.

        Args:
            policy: the model that is trained.
            batch: what is scored.
            rows: the part of the data, `train` or `eval`, that the batch's indices count in.
            statistics: what the loss needs besides sums and lengths.
        """
        own = [name for name in statistics if name == "tokens"]  # the others are the policy's
        with torch.no_grad(), self.activated(policy) as model:
            return score(model, batch, self._head, own)

    def distributions(self, policy: nn.Module, batch: Batch) -> Scored:
        """The reference's distributions over the vocabulary at every scored token, for a divergence from them.

        Raises:
            UserError: there is no model to ask.
        """

        def logits(hidden: Tensor) -> Tensor:
            with torch.no_grad(), self.activated(policy):
                return logits_of(hidden)

        with torch.no_grad(), self.activated(policy) as model:
            hidden, logits_of = scored_positions(model, batch, self._head)
        return Scored(hidden, logits)

    def digest(self, policy: nn.Module) -> str:
        """The fingerprint of the reference's weights as they were loaded, whatever the precision of the run."""
        return self._digest


class FrozenCopy(ReferencePolicy):
    """A copy of the policy as it was before its first step, or another model given by `path`.

    The copy is not a registered submodule: it follows the policy between devices and dtypes, and nothing else
    (optimizer, checkpoint, train mode, gradient synchronisation) ever meets it.
    """

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
            check_same_tokenizer(builder, other)
            model = other.build()
        without_dropout(model)
        self._held = [model.eval().requires_grad_(False)]
        self._head = find_head(model)
        if builder.compile:
            compile_layers(causal_lm(model))
            self._nearness = HALF_TOLERANCE
        # A new adapter begins as nothing, with random weights that another start would not draw again.
        fresh = self.path is None and has_new_adapter(builder)
        self._digest = fingerprint(policy if fresh else model)

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The copy."""
        yield self._held[0]

    def takes_trees(self) -> bool:
        """As the copied or named model does."""
        return takes_trees(causal_lm(self._held[0]))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FrozenCopy:
        for model in self._held:
            model._apply(fn, recurse)
        return super()._apply(fn, recurse)


class AdapterDisabled(ReferencePolicy):
    """The policy with its fresh LoRA adapter switched off, so that no second model is held."""

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Check that switching the adapter off gives back the policy's starting point."""
        if builder.adapter_folder() is not None:
            raise UserError(
                ExitCode.CONFIG,
                Problem("the policy's adapter was trained before: without it the reference would be the base", KEY),
                fix="leave --model.reference out (a frozen copy is taken), or merge the adapter first",
            )
        self._head = find_head(policy)
        self._nearness = HALF_TOLERANCE if builder.compile else 0.0
        self._digest = fingerprint(policy)

    @contextmanager
    def activated(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The policy itself, its adapter off."""
        with policy.disable_adapter():  # type: ignore[operator]
            yield policy


class ReferenceFree(ReferencePolicy):
    """No reference, for losses that ask none: its log-probabilities are 0, so that log-ratios are the policy's own."""

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Nothing is needed."""
        self._digest = "none"

    @property
    def starts_equal(self) -> bool:
        """There is nothing to be equal to."""
        return False

    @property
    def live(self) -> bool:
        """There is no model."""
        return False

    def activated(self, policy: nn.Module) -> Any:
        """Refuse: there is no model."""
        raise UserError(
            ExitCode.CONFIG,
            Problem("there is no reference to ask", KEY),
            fix="a loss with a reference, such as DPOLoss",
        )

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Zeros."""
        zeros = torch.zeros(batch.num_sequences, device=batch.targets.device)
        tokens = zeros[:, None].expand(-1, batch.mask.shape[1]) if "tokens" in statistics else None
        return SequenceLogps(zeros, zeros, tokens)


def fingerprint(model: nn.Module) -> str:
    """Names, sizes and up to 256 values of every frozen tensor: all of a frozen copy, the base below an adapter."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        if not value.requires_grad:
            flat = value.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 256)][:256].float().cpu()
            digest.update(f"{name} {tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def default_reference(builder: CausalLM, *, reference_free: bool = False) -> ReferencePolicy:
    """The reference that a policy of this kind needs, and a loss."""
    if reference_free:
        return ReferenceFree()
    return AdapterDisabled() if has_new_adapter(builder) else FrozenCopy()


def has_new_adapter(builder: CausalLM) -> bool:
    """Whether the policy begins with an adapter that was never trained."""
    return builder.lora is not None and builder.adapter_folder() is None


def check_same_tokenizer(builder: CausalLM, other: CausalLM) -> None:
    """Log-probabilities can only be compared over the same tokens."""
    if builder.tokenizer().get_vocab() != other.tokenizer().get_vocab():
        raise UserError(
            ExitCode.MODEL,
            Problem("the reference has another tokenizer than the policy", f"{KEY}.path", other.path),
            fix="use a reference of the same family",
        )
