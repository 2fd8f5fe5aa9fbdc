"""What models and losses are given and give back: batches, log-probabilities, and the numbers per pair."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Statistic: TypeAlias = Literal["tokens", "collisions", "kl", "margin"]
"""What a loss may need besides sums and lengths.

`tokens`: every scored token's log-probability. `collisions`: the policy's `log sum_v p(v)^2`, summed over an answer.
`kl`: `KL(reference || policy)` over the vocabulary, summed over an answer. `margin`: the rows' column of that name.
"""


class Tree(NamedTuple):
    """Where sequences with a common beginning lie in a row: the trunk once, then what each has of its own.

    A trunk token sees the trunk before it; a branch token sees the whole trunk and its own branch before it. There is a
    branch for every sequence; that of a sequence by itself is empty.
    """

    row: int
    start: int
    trunk: int
    branches: tuple[int, ...]
    numbers: tuple[int, ...]
    """The sequence that each branch belongs to."""


class PreferenceBatch(NamedTuple):
    """`B` pairs as `2B` sequences: chosen answers are sequences `0..B-1`, rejected ones `B..2B-1`.

    Attributes:
        input_ids: token ids.
        position_ids: positions within the sequence, so that neither padding nor neighbours change anything.
        mask: True on real tokens.
        places: for each scored token, the position that predicts it, counted through the rows.
        targets: the scored tokens' ids, those of a sequence in its order.
        sequence_ids: the sequence that each scored token belongs to.
        trees: which token sees which; empty where every row is one causal sequence.
        indices: the row of the data set per pair, -1 for a pair that only fills up a rank's share.
        weights: how much each pair counts in the loss; 0 for one that only fills up.
        margins: by how much the chosen answer was found better, in the rows' own unit; 0 where rows do not tell.
    """

    input_ids: Int[Tensor, "row position"]
    position_ids: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]
    trees: tuple[Tree, ...]
    indices: Int[Tensor, " pair"]
    weights: Float[Tensor, " pair"]
    margins: Float[Tensor, " pair"]

    @property
    def num_sequences(self) -> int:
        """Two per pair."""
        return 2 * len(self.indices)

    def owners(self) -> list[tuple[int, int]]:
        """The pair of each sequence, and which of its answers it is."""
        return [(pair, side) for side in range(2) for pair in range(len(self.indices))]


class SFTBatch(NamedTuple):
    """Demonstrations, one sequence each; the attributes are those of `PreferenceBatch`.

    Attributes:
        weights: how much each token of a demonstration counts in the loss; 0 for one that only fills up.
    """

    input_ids: Int[Tensor, "row position"]
    position_ids: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]
    trees: tuple[Tree, ...]
    indices: Int[Tensor, " sequence"]
    weights: Float[Tensor, " sequence"]

    @property
    def num_sequences(self) -> int:
        """One per demonstration."""
        return len(self.indices)


class RankedBatch(NamedTuple):
    """Ranked lists, their answers as sequences: list after list, the best answer of each first.

    Attributes:
        answers: the sequence at each rank of a list, -1 behind the last of a shorter list.
        num_sequences: answers of all lists.
        indices: the row of the data set per list, -1 for a list that only fills up a rank's share.
        weights: how much each list counts in the loss; 0 for one that only fills up.

    The other attributes are those of `PreferenceBatch`.
    """

    input_ids: Int[Tensor, "row position"]
    position_ids: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]
    trees: tuple[Tree, ...]
    answers: Int[Tensor, "list rank"]
    num_sequences: int
    indices: Int[Tensor, " list"]
    weights: Float[Tensor, " list"]

    def owners(self) -> list[tuple[int, int]]:
        """The list of each sequence, and its rank there."""
        table = [[number for number in numbers if number >= 0] for numbers in self.answers.tolist()]
        return [(row, rank) for row, numbers in enumerate(table) for rank in range(len(numbers))]


class UnpairedBatch(NamedTuple):
    """`B` judged answers as sequences `0..B-1`; where a loss asks for it, a mismatched one to each prompt after them.

    The other attributes are those of `PreferenceBatch`.

    Attributes:
        weights: how much each answer counts in the loss; 0 for one that only fills up.
        good: True for an answer that was judged good.
        answers: sequences per row: 1, or 2 with the mismatched ones, which are `B..2B-1`.
    """

    input_ids: Int[Tensor, "row position"]
    position_ids: Int[Tensor, "row position"]
    mask: Bool[Tensor, "row position"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]
    trees: tuple[Tree, ...]
    indices: Int[Tensor, " answer"]
    weights: Float[Tensor, " answer"]
    good: Bool[Tensor, " answer"]
    answers: int

    @property
    def num_sequences(self) -> int:
        """One or two per row."""
        return self.answers * len(self.indices)

    def owners(self) -> list[tuple[int, int]]:
        """The row of each sequence, and which of its answers it is: the judged one or the mismatched one."""
        return [(row, side) for side in range(self.answers) for row in range(len(self.indices))]


Batch: TypeAlias = PreferenceBatch | SFTBatch | UnpairedBatch | RankedBatch


class TokenLogps(NamedTuple):
    """Log-probability of each scored token in nats, in the order of the batch's `targets`, and whose token it is."""

    values: Float[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]


class SequenceLogps(NamedTuple):
    """Log-probabilities of each sequence's scored tokens: their sum in nats, and how many they are.

    Attributes:
        sums: log-probability of the whole answer.
        lengths: its scored tokens.
        tokens: log-probability of each scored token, zeros behind the last; only where asked for, as all that follows.
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
    def of(cls, policy: SequenceLogps, reference: SequenceLogps, batch: PreferenceBatch | None = None) -> PairLogps:
        """Pair up the `2B` sequences of a `PreferenceBatch`."""
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
            given_margins=None if batch is None else batch.margins,
            policy_tokens=policy.tokens,
            reference_tokens=reference.tokens,
            collisions=policy.collisions,
            kl=policy.kl,
        )

    @property
    def chosen_logratios(self) -> Float[Tensor, " pair"]:
        """Log pi(chosen) - log ref(chosen)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_logratios(self) -> Float[Tensor, " pair"]:
        """Log pi(rejected) - log ref(rejected)."""
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
    def counts(self) -> Float[Tensor, " pair"]:
        """The weights, 1 where none were given."""
        return torch.ones_like(self.chosen_lengths) if self.weights is None else self.weights

    def detach(self) -> PairLogps:
        """The same numbers without their graph."""
        return PairLogps._make(None if value is None else value.detach() for value in self)

    def select(self, pairs: Bool[Tensor, " pair"]) -> PairLogps:
        """Some of the pairs."""
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
