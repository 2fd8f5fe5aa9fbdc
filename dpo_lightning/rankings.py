"""Numbers of ranked lists: what a list-wise loss is given, and what it gives back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpo_lightning.types import RankedBatch, SequenceLogps


class GroupLogps(NamedTuple):
    """What a list-wise loss is given: summed log-probabilities by list and rank, zeros behind a shorter list."""

    policy: Float[Tensor, "list rank"]
    reference: Float[Tensor, "list rank"]
    lengths: Float[Tensor, "list rank"]
    """Scored tokens of each answer."""
    mask: Bool[Tensor, "list rank"]
    """True where a list has an answer."""

    @classmethod
    def of(cls, policy: SequenceLogps, reference: SequenceLogps, batch: RankedBatch) -> GroupLogps:
        """Sort the sequences of a `RankedBatch` into its lists."""
        mask = batch.answers >= 0
        sums, others, lengths = (
            torch.where(mask, values[batch.answers.clamp(min=0)], 0)
            for values in (policy.sums, reference.sums, policy.lengths)
        )
        return cls(sums, others, lengths, mask)

    @property
    def logratios(self) -> Float[Tensor, "list rank"]:
        """Log pi - log ref of each answer."""
        return self.policy - self.reference

    @property
    def margins(self) -> Float[Tensor, " list"]:
        """By how many nats the log-ratios of a list are apart at most."""
        low, high = (torch.where(self.mask, self.logratios, end) for end in (torch.inf, -torch.inf))
        return high.amax(1) - low.amin(1)

    @property
    def each(self) -> tuple[Float[Tensor, " seq"], Float[Tensor, " seq"], Float[Tensor, " seq"]]:
        """Log-ratios, the policy's sums and lengths of every answer, list after list."""
        return self.logratios[self.mask], self.policy[self.mask], self.lengths[self.mask]

    def detach(self) -> GroupLogps:
        """The same numbers without their graph."""
        return GroupLogps._make(value.detach() for value in self)

    def select(self, lists: Bool[Tensor, " list"]) -> GroupLogps:
        """Some of the lists."""
        return GroupLogps._make(value[lists] for value in self)

    def at_start(self) -> GroupLogps:
        """What the same answers give where the policy still is the reference."""
        return self._replace(reference=self.policy)


class RankedOutput(NamedTuple):
    """A list-wise loss's answer per list, and implicit rewards of its answers, detached.

    Zeros stand behind a shorter list.
    """

    losses: Float[Tensor, " list"]
    rewards: Float[Tensor, "list rank"]
    mask: Bool[Tensor, "list rank"]
    """True where a list has an answer."""

    @property
    def best(self) -> Float[Tensor, " list"]:
        """The reward of the answer that was ranked first."""
        return self.rewards[:, 0]

    @property
    def worst(self) -> Float[Tensor, " list"]:
        """The reward of the answer that was ranked last."""
        return self.rewards.gather(1, self.mask.sum(1, keepdim=True) - 1).squeeze(1)

    @property
    def margins(self) -> Float[Tensor, " list"]:
        """By how much the first answer is ahead of the last."""
        return self.best - self.worst
