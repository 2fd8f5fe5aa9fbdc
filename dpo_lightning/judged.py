"""What the losses of judged answers are given and give back: the numbers per answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class UnpairedLogps(NamedTuple):
    """What a loss of single answers is given: summed log-probabilities, numbers of scored tokens, and the judgement."""

    policy: Float[Tensor, " answer"]
    reference: Float[Tensor, " answer"]
    lengths: Float[Tensor, " answer"]
    good: Bool[Tensor, " answer"]
    weights: Float[Tensor, " answer"] | None = None
    """How much each answer counts; where it is left out, every answer counts as one."""
    kl: Float[Tensor, ""] | None = None
    """Mean log-ratio of mismatched answers in the micro-batch of all ranks; where a loss asks it."""

    @property
    def logratios(self) -> Float[Tensor, " answer"]:
        """Log pi(answer) - log ref(answer)."""
        return self.policy - self.reference

    @property
    def margins(self) -> Float[Tensor, " answer"]:
        """What has to be 0 at the start, as a pair's margin: the log-ratios."""
        return self.logratios

    @property
    def counts(self) -> Float[Tensor, " answer"]:
        """The weights, 1 where none were given."""
        return torch.ones_like(self.lengths) if self.weights is None else self.weights

    @property
    def each(self) -> tuple[Float[Tensor, " seq"], Float[Tensor, " seq"], Float[Tensor, " seq"]]:
        """Log-ratios, the policy's sums and lengths of every judged answer."""
        return self.logratios, self.policy, self.lengths

    def detach(self) -> UnpairedLogps:
        """The same numbers without their graph."""
        return UnpairedLogps._make(None if value is None else value.detach() for value in self)

    def select(self, answers: Bool[Tensor, " answer"]) -> UnpairedLogps:
        """Some of the answers; what all of them came to stays."""
        return UnpairedLogps._make(value if value is None or not value.ndim else value[answers] for value in self)

    def at_start(self) -> UnpairedLogps:
        """What the same answers give where the policy still is the reference."""
        return self._replace(reference=self.policy, kl=None if self.kl is None else torch.zeros_like(self.kl))


class UnpairedOutput(NamedTuple):
    """A loss's answer per judged answer. Rewards are implicit (`beta * log-ratio`), detached."""

    losses: Float[Tensor, " answer"]
    rewards: Float[Tensor, " answer"]

    @property
    def margins(self) -> Float[Tensor, " answer"]:
        """What has to be 0 at the start, as a pair's margin: the rewards."""
        return self.rewards
