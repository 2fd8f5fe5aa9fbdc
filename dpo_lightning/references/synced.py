"""`Synced`: a reference that follows the policy, a part of the way every so many steps (TR-DPO)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lightning.batches import Batch
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.logps import Scored
from dpo_lightning.models.causal_lm import CausalLM
from dpo_lightning.references.adapter_disabled import has_adapter
from dpo_lightning.references.base import KEY, ReferencePolicy
from dpo_lightning.references.frozen import FrozenAdapter, FrozenCopy, HeldStart
from dpo_lightning.types import SequenceLogps, Statistic


class Synced(ReferencePolicy):
    """A frozen start that moves towards the policy (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656).

    Every `every` optimizer steps, `reference <- alpha * policy + (1 - alpha) * reference`, weight by weight; with
    `alpha` 1 the policy is copied. What is mixed is what is trained: all weights, or an adapter's matrices, over the
    base that both share. Buffers are copied. These weights are the run's state, and lie in its checkpoints.
    """

    def __init__(self, every: int = 512, alpha: float = 0.6) -> None:
        """Choose how fast it follows.

        Args:
            every: optimizer steps from one update to the next.
            alpha: the policy's part in the mix, above 0 (no update at all) and up to 1 (a hard copy).
        """
        super().__init__()
        for name, value, good, reason in (
            ("every", every, every >= 1, "must be at least 1"),
            ("alpha", alpha, 0 < alpha <= 1, "must lie in (0, 1]"),
        ):
            if not good:
                raise UserError(
                    ExitCode.CONFIG,
                    Problem(f"{name}={value} {reason}", f"{KEY}.{name}"),
                    fix=f"give --{KEY}.{name} another value; a reference that stays is FrozenCopy",
                )
        self.every, self.alpha = every, alpha
        self._told = False

    def bind(self, policy: nn.Module, builder: CausalLM) -> None:
        """Hold the start: of the whole policy, or of its adapter."""
        self.start: HeldStart = FrozenAdapter() if has_adapter(policy) else FrozenCopy()
        self.start.bind(policy, builder)
        self._names = tuple(self.start.moving(policy))

    def activated(self, policy: nn.Module) -> Any:
        """What has become of the start."""
        return self.start.activated(policy)

    def forward(
        self, policy: nn.Module, batch: Batch, rows: str = "train", statistics: Collection[Statistic] = ()
    ) -> SequenceLogps:
        """Log-probabilities under what has become of the start."""
        found: SequenceLogps = self.start(policy, batch, rows, statistics)
        return found

    def distributions(self, policy: nn.Module, batch: Batch) -> Scored:
        """Distributions under what has become of the start."""
        return self.start.distributions(policy, batch)

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Follow the policy, if it is time; the same on every process, whose policies are the same."""
        if step % self.every:
            return
        own = self.start.named()
        with torch.no_grad():
            for name, value in self.start.moving(policy).items():
                if isinstance(value, nn.Parameter):
                    own[name].lerp_(value.to(own[name]), self.alpha)
                else:
                    own[name].copy_(value)
        if not self._told:
            self._told = True
            logger.info(
                f"reference: moved towards the policy by {self.alpha} after step {step}; again every {self.every} steps"
            )

    def get_extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the weights as they have become."""
        own = self.start.named()
        return {name: own[name].detach() for name in self._names}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the weights of a checkpoint."""
        own = self.start.named()
        for name in self._names:
            own[name].data.copy_(state[name])

    @property
    def nearness(self) -> float:
        """As the start."""
        return self.start.nearness

    def takes_trees(self) -> bool:
        """As the start."""
        return self.start.takes_trees()

    def named(self) -> Mapping[str, Tensor]:
        """The start's weights."""
        return self.start.named()

    def digest(self, policy: nn.Module) -> str:
        """The start's: where the run began does not move."""
        return self.start.digest(policy)

    def anchor(self, policy: nn.Module) -> dict[str, Any]:
        """The start's."""
        return self.start.anchor(policy)

    def check_anchor(self, policy: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        """Compare the start's."""
        self.start.check_anchor(policy, checkpoint)
