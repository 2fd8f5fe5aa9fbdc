"""Batches: rows as tensors, four kinds of them, as collators make them and models read them."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor


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
