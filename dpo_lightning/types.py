"""What losses are given and give back: log-probabilities, and numbers per pair, ranked list or unpaired row."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpo_lightning.batches import Batch

Statistic: TypeAlias = Literal["tokens", "collisions", "kl", "margin"]
"""What a loss may need besides sums and lengths.

`tokens`: every scored token's log-probability. `collisions`: the policy's `log sum_v p(v)^2`, summed over an answer.
`kl`: `KL(reference || policy)` over the vocabulary, summed over an answer. `margin`: the rows' column of that name.
"""


class TokenLogps(NamedTuple):
    """Log-probability of each scored token in nats, in the order of the batch's `targets`, and whose token it is."""

    values: Float[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]


class SequenceLogps(NamedTuple):
    """Log-probabilities of each sequence's scored tokens: their sum in nats, and how many they are.

    Attributes:
        sums: log-probability of the whole answer.
        lengths: its scored tokens.
        tokens: log-probability of each scored token, zeros after the last; only if requested, as all that follows.
        collisions: `log sum_v p(v)^2` of the model's distribution at each scored token, summed. It has no gradient.
        kl: `KL(reference || model)` at each scored token, summed.
    """

    sums: Float[Tensor, " seq"]
    lengths: Float[Tensor, " seq"]
    tokens: Float[Tensor, "seq token"] | None = None
    collisions: Float[Tensor, " seq"] | None = None
    kl: Float[Tensor, " seq"] | None = None


class PairLogps(NamedTuple):
    """What a loss is given: summed log-probabilities of both answers, and their numbers of scored tokens.

    What follows these six is there where a loss names it in its `statistics`; chosen answers come first in `[seq]`.
    """

    policy_chosen: Float[Tensor, " pair"]
    policy_rejected: Float[Tensor, " pair"]
    reference_chosen: Float[Tensor, " pair"]
    reference_rejected: Float[Tensor, " pair"]
    chosen_lengths: Float[Tensor, " pair"]
    rejected_lengths: Float[Tensor, " pair"]
    weights: Float[Tensor, " pair"] | None = None
    """How much each pair counts; where it is left out, every pair counts as one."""
    given_margins: Float[Tensor, " pair"] | None = None
    """The rows' `margin` column."""
    policy_tokens: Float[Tensor, "seq token"] | None = None
    reference_tokens: Float[Tensor, "seq token"] | None = None
    collisions: Float[Tensor, " seq"] | None = None
    kl: Float[Tensor, " seq"] | None = None

    @classmethod
    def of(cls, policy: SequenceLogps, reference: SequenceLogps, batch: Batch | None = None) -> PairLogps:
        """Pair up the `2B` sequences of a batch of pairs."""
        chosen, rejected = policy.sums.chunk(2)
        reference_chosen, reference_rejected = reference.sums.chunk(2)
        chosen_lengths, rejected_lengths = policy.lengths.chunk(2)
        return cls(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            chosen_lengths,
            rejected_lengths,
            weights=None if batch is None else batch.weights,
            given_margins=None if batch is None else batch.columns["margins"],
            policy_tokens=policy.tokens,
            reference_tokens=reference.tokens,
            collisions=policy.collisions,
            kl=policy.kl,
        )

    @property
    def chosen_logratios(self) -> Float[Tensor, " pair"]:
        """Log pi(chosen) - log ref(chosen), sums over tokens, in nats."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_logratios(self) -> Float[Tensor, " pair"]:
        """Log pi(rejected) - log ref(rejected), sums over tokens, in nats."""
        return self.policy_rejected - self.reference_rejected

    @property
    def margins(self) -> Float[Tensor, " pair"]:
        """The difference of the log-ratios, `h` in the formulas."""
        return self.chosen_logratios - self.rejected_logratios

    @property
    def each(self) -> tuple[Float[Tensor, " seq"], Float[Tensor, " seq"], Float[Tensor, " seq"]]:
        """Log-ratios, the policy's sums and lengths of every answer, chosen ones first."""
        return (
            torch.cat([self.chosen_logratios, self.rejected_logratios]),
            torch.cat([self.policy_chosen, self.policy_rejected]),
            torch.cat([self.chosen_lengths, self.rejected_lengths]),
        )

    @property
    def row_weights(self) -> Float[Tensor, " pair"]:
        """The `weights` of the rows; 1 where none are given."""
        return torch.ones_like(self.chosen_lengths) if self.weights is None else self.weights

    def detach(self) -> PairLogps:
        """The same numbers without their graph."""
        return PairLogps._make(None if value is None else value.detach() for value in self)

    def select(self, pairs: Bool[Tensor, " pair"]) -> PairLogps:
        """Keep the pairs where `pairs` is True; fields per sequence keep both of their answers."""
        both = pairs.repeat(2)
        return PairLogps._make(
            None if value is None else value[pairs if len(value) == len(pairs) else both] for value in self
        )

    def at_start(self) -> PairLogps:
        """What the same answers give where the policy still is the reference."""
        return self._replace(
            reference_chosen=self.policy_chosen,
            reference_rejected=self.policy_rejected,
            reference_tokens=self.policy_tokens,
            kl=None if self.kl is None else torch.zeros_like(self.kl),
        )


class PreferenceOutput(NamedTuple):
    """A loss's answer per pair. Rewards are implicit (`beta * log-ratio` for DPO), detached."""

    losses: Float[Tensor, " pair"]
    chosen_rewards: Float[Tensor, " pair"]
    rejected_rewards: Float[Tensor, " pair"]

    @property
    def margins(self) -> Float[Tensor, " pair"]:
        """By how much the chosen answer is rewarded more."""
        return self.chosen_rewards - self.rejected_rewards


class UnpairedLogps(NamedTuple):
    """What a loss of single answers is given: summed log-probabilities, numbers of scored tokens, and the labels."""

    policy: Float[Tensor, " answer"]
    reference: Float[Tensor, " answer"]
    lengths: Float[Tensor, " answer"]
    good: Bool[Tensor, " answer"]
    weights: Float[Tensor, " answer"] | None = None
    """How much each answer counts; where it is left out, every answer counts as one."""
    kl: Float[Tensor, ""] | None = None
    """Mean log-ratio of mismatched answers in the micro-batch of all ranks; only if the loss needs it."""

    @classmethod
    def of(
        cls, policy: SequenceLogps, reference: SequenceLogps, batch: Batch, kl: Float[Tensor, ""] | None = None
    ) -> UnpairedLogps:
        """Take the first answer of every row of a batch; mismatched ones come after all of these."""
        own = slice(len(batch.indices))
        values = policy.sums[own], reference.sums[own], policy.lengths[own]
        return cls(*values, batch.columns["good"], batch.weights, kl)

    @property
    def logratios(self) -> Float[Tensor, " answer"]:
        """Log pi(answer) - log ref(answer), sums over tokens, in nats."""
        return self.policy - self.reference

    @property
    def margins(self) -> Float[Tensor, " answer"]:
        """What has to be 0 at the start, as a pair's margin: the log-ratios."""
        return self.logratios

    @property
    def row_weights(self) -> Float[Tensor, " answer"]:
        """The `weights` of the rows; 1 where none are given."""
        return torch.ones_like(self.lengths) if self.weights is None else self.weights

    @property
    def each(self) -> tuple[Float[Tensor, " seq"], Float[Tensor, " seq"], Float[Tensor, " seq"]]:
        """Log-ratios, the policy's sums and lengths of every answer."""
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
    """What a loss gives per unpaired row. Rewards are implicit (`beta * log-ratio`), detached."""

    losses: Float[Tensor, " answer"]
    rewards: Float[Tensor, " answer"]

    @property
    def margins(self) -> Float[Tensor, " answer"]:
        """What has to be 0 at the start, as a pair's margin: the rewards."""
        return self.rewards


class RankedLogps(NamedTuple):
    """What a list-wise loss is given: summed log-probabilities by list and rank, zeros behind a shorter list."""

    policy: Float[Tensor, "list rank"]
    reference: Float[Tensor, "list rank"]
    lengths: Float[Tensor, "list rank"]
    """Scored tokens of each answer."""
    mask: Bool[Tensor, "list rank"]
    """True where a list has an answer."""

    @classmethod
    def of(cls, policy: SequenceLogps, reference: SequenceLogps, batch: Batch) -> RankedLogps:
        """Sort the sequences of a batch of ranked lists into the lists."""
        values = (policy.sums, reference.sums, policy.lengths, torch.ones_like(policy.lengths, dtype=torch.bool))
        return cls(*map(batch.by_row, values))

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

    def detach(self) -> RankedLogps:
        """The same numbers without their graph."""
        return RankedLogps._make(value.detach() for value in self)

    def select(self, lists: Bool[Tensor, " list"]) -> RankedLogps:
        """Keep the lists where `lists` is True, with all of their answers."""
        return RankedLogps._make(value[lists] for value in self)

    def at_start(self) -> RankedLogps:
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
