"""The batches that samplers give every rank, and the rows in them."""

from __future__ import annotations

from typing import Any


def ranks(
    kind: Any,
    sizes: list[int],
    most: int,
    world_size: int = 1,
    *,
    epoch: int = 0,
    seed: int = 1,
    shuffle: bool = True,
    longest_first: bool = False,
) -> list[list[list[int]]]:
    """The batches of every rank."""
    orders = [
        kind(
            sizes,
            most,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            longest_first=longest_first,
        )
        for rank in range(world_size)
    ]
    for order in orders:
        order.set_epoch(epoch)
    batches = [list(order) for order in orders]
    assert {len(order) for order in orders} == {len(share) for share in batches}
    return batches


def flat(batches: list[list[list[int]]]) -> list[int]:
    """The rows of all ranks without fillers."""
    return [row for share in batches for batch in share for row in batch if row >= 0]
