"""`Batch`: rows as tensors, the same for every kind of row; collators make it and models read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
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


class Batch(NamedTuple):
    """Rows of the data set, a sequence (prompt and answer) for each of their answers.

    Pairs and unpaired rows have all first answers as sequences `0..B-1` and all second ones as `B..2B-1`; ranked lists
    have theirs list after list.

    Attributes:
        input_ids: token ids.
        position_ids: positions within the sequence, so that neither padding nor neighbours change anything.
        mask: True on real tokens.
        places: for each scored token, the position that predicts it, counted through the rows of `input_ids`.
        targets: the scored tokens' ids, those of a sequence in its order.
        sequence_ids: the sequence that each scored token belongs to.
        trees: which token sees which; empty where every row of `input_ids` is one causal sequence.
        owners: for each sequence, its row of the batch and its place among the answers of that row.
        most_answers: answers of the row that has most.
        indices: the row of the data set for each row of the batch, -1 for one that only fills up a rank's share.
        weights: how much each row counts in the loss; 0 for one that only fills up.
        columns: what was said of each row, such as `margins` of pairs and `good` of unpaired rows.
    """

    input_ids: Int[Tensor, "line position"]
    position_ids: Int[Tensor, "line position"]
    mask: Bool[Tensor, "line position"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    sequence_ids: Int[Tensor, " scored"]
    trees: tuple[Tree, ...]
    owners: Int[Tensor, "seq 2"]
    most_answers: int
    indices: Int[Tensor, " row"]
    weights: Float[Tensor, " row"]
    columns: Mapping[str, Tensor]

    @property
    def num_sequences(self) -> int:
        """Number of sequences: the answers of all rows."""
        return len(self.owners)

    def by_row(self, values: Tensor) -> Tensor:
        """Values of the sequences `[seq]` in a table `[row answer]`, zeros where a row has fewer answers."""
        table = values.new_zeros(len(self.indices), self.most_answers)
        return table.index_put((self.owners[:, 0], self.owners[:, 1]), values)

    def to(self, device: torch.device | str) -> Batch:
        """Move all tensors to a device, as `move` does."""
        columns = {name: move(value, device) for name, value in self.columns.items()}
        parts = (move(part, device) if isinstance(part, Tensor) else part for part in self)
        return Batch._make(parts)._replace(columns=columns)


def move(part: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device; to a GPU without waiting for what it computes.

    Only from page-locked memory is a copy to a GPU queued behind the work that was queued before.
    """
    target = torch.device(device)
    if target.type == "cuda" and part.device.type == "cpu":
        return part.pin_memory().to(target, non_blocking=True)
    return part.to(target)
