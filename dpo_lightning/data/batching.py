"""The order of rows: a pure function of seed and epoch, shared out to ranks without counting a row twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DistributedSampler


class SeededOrder(DistributedSampler[Any]):
    """Rows in the order of `(seed, epoch)`, an equal number for every rank.

    Where the rows do not divide by the ranks, some are given twice so that no rank waits for another. Such a filler is
    yielded as `~index` (negative), and the batch marks it with -1: no loss and no metric counts it.
    A `DistributedSampler`, so that Lightning leaves it in place and tells it the epoch; with one rank it is plain.
    """

    def __init__(
        self,
        size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """Order `size` rows for `rank` of `world_size`.

        Args:
            size: number of rows.
            shuffle: draw a new order every epoch.
            seed: the same seed gives the same orders.
            rank: this process.
            world_size: all processes.
            lengths: tokens per row; rows that are not shuffled then come longest first, so that batches hold
                rows of one length and memory that will not do shows at once.
        """
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self._unshuffled = sorted(range(size), key=lambda i: -lengths[i]) if lengths else list(range(size))

    def __iter__(self) -> Iterator[Any]:
        """This rank's share of the epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist() if self.shuffle else self._unshuffled
        for place in range(self.rank, self.total_size, self.num_replicas):
            yield order[place] if place < self.size else ~order[place % self.size]
