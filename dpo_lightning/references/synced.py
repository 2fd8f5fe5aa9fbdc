"""`Synced`: a reference that is moved towards the policy every so many steps (TR-DPO)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lightning.batches import Batch
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.logps import Scored
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.references.adapter_disabled import has_adapter
from dpo_lightning.references.base import REFERENCE_KEY, ReferencePolicy
from dpo_lightning.references.frozen import FrozenAdapter, FrozenCopy, HeldStart
from dpo_lightning.types import SequenceLogps, Statistic


class Synced(ReferencePolicy):
    """A frozen start that is moved towards the policy (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656).

    Every `every` optimizer steps, `reference <- alpha * policy + (1 - alpha) * reference` for each trained weight; with
    `alpha` 1 the policy is copied. With an adapter these are the adapter's weights, over the base that both share.
    Buffers are copied. The mixed weights are saved in checkpoints.
    """

    def __init__(self, every: int = 512, alpha: float = 0.6) -> None:
        """Set how fast the reference follows the policy.

        Args:
            every: optimizer steps between two updates.
            alpha: weight of the policy in the mix, above 0 and up to 1 (1 copies the policy).
        """
        super().__init__()
        for name, value, good, reason in (
            ("every", every, every >= 1, "must be at least 1"),
            ("alpha", alpha, 0 < alpha <= 1, "must be in (0, 1]"),
        ):
            if not good:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={value} {reason}", f"{REFERENCE_KEY}.{name}"),
                    fix=f"change --{REFERENCE_KEY}.{name}, or use FrozenCopy for a reference that does not move",
                )
        self.every, self.alpha = every, alpha
        self._logged = False

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Hold the starting weights: of the adapter if there is one, else of the whole policy."""
        self.start: HeldStart = FrozenAdapter() if has_adapter(policy) else FrozenCopy()
        self.start.sharded = self.sharded
        self.start.bind(policy, builder)
        self._names = tuple(self.start.trained_state(policy))

    def shard(self, policy: nn.Module, shard_model: Callable[[nn.Module], None]) -> None:
        """Shard the frozen start that is moved."""
        self.start.shard(policy, shard_model)

    def as_model(self, policy: nn.Module) -> Any:
        """Return a context manager that yields a model with the reference's current weights."""
        return self.start.as_model(policy)

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Compute log-probabilities under the reference's current weights."""
        found: SequenceLogps = self.start(policy, batch, rows, statistics)
        return found

    def distributions(self, policy: nn.Module, batch: Batch) -> Scored:
        """Compute distributions over the vocabulary under the reference's current weights."""
        return self.start.distributions(policy, batch)

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Mix the policy into the reference every `every` steps; all ranks do the same, as their policies are equal."""
        if step % self.every:
            return
        own = self.start.held_weights()
        with torch.no_grad():
            for name, value in self.start.trained_state(policy).items():
                # Buffers may be integers, such as counts, and cannot be mixed.
                if isinstance(value, nn.Parameter):
                    own[name].lerp_(value.to(own[name]), self.alpha)
                else:
                    own[name].copy_(value)
        if not self._logged:
            self._logged = True
            logger.info(
                f"reference: moved towards the policy by {self.alpha} after step {step}; again every {self.every} steps"
            )

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the reference's current weights for a checkpoint."""
        own = self.start.held_weights()
        return {name: own[name].detach() for name in self._names}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the reference's weights from a checkpoint."""
        own = self.start.held_weights()
        for name in self._names:
            own[name].data.copy_(state[name])

    @property
    def start_tolerance(self) -> float:
        """The tolerance of the frozen start that is moved; see `ReferencePolicy.start_tolerance`."""
        return self.start.start_tolerance

    def takes_trees(self) -> bool:
        """Whether the frozen start computes correctly for packed rows and shared prefixes."""
        return self.start.takes_trees()

    def held_weights(self) -> Mapping[str, Tensor]:
        """Return the reference's current weights, by name."""
        return self.start.held_weights()

    def digest(self, policy: nn.Module) -> str:
        """Return the digest of the starting weights, which updates do not change."""
        return self.start.digest(policy)

    def identity(self, policy: nn.Module) -> dict[str, Any]:
        """Return the identity of the starting weights."""
        return self.start.identity(policy)

    def check_identity(self, policy: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        """Compare the identity of the starting weights with a checkpoint's."""
        self.start.check_identity(policy, checkpoint)
