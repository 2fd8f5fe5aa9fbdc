"""The order of rows: a function of seed and epoch, for batches of a fixed number of rows that of earlier versions."""

import hypothesis
import torch
from hypothesis import strategies
from support.batch_orders import flat, ranks

from dpo_lightning.data.samplers import FixedBatches, TokenBatches


def share_of_before(sizes, size, rank, world_size, epoch, seed, shuffle, longest_first):
    """The batches that earlier versions made: a rank took every n-th row, and its rows were cut into batches."""
    generator = torch.Generator().manual_seed(seed + epoch)
    order = sorted(range(len(sizes)), key=lambda row: -sizes[row]) if longest_first else list(range(len(sizes)))
    if shuffle:
        order = torch.randperm(len(sizes), generator=generator).tolist()
    total = -(-len(sizes) // world_size) * world_size
    places = range(rank, total, world_size)
    rows = [order[place] if place < len(sizes) else ~order[place % len(sizes)] for place in places]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_seeds_give_the_orders_that_they_always_gave():
    eleven = [1] * 11
    assert ranks(FixedBatches, eleven, 3, seed=42) == [[[6, 8, 9], [2, 1, 10], [0, 7, 3], [5, 4]]]
    two = [[[3, 4, 8], [6, 1, 0]], [[9, 2, 7], [10, 5, -4]]]
    assert ranks(FixedBatches, eleven, 3, 2, seed=42, epoch=1) == two
    three = [[[10, 8], [1, 2]], [[4, 0], [6, 5]], [[3, 7], [9, -11]]]
    assert ranks(FixedBatches, eleven, 2, 3, seed=7, epoch=5) == three


@hypothesis.given(
    strategies.lists(strategies.integers(1, 9), min_size=1, max_size=30),
    strategies.integers(1, 5),
    strategies.integers(1, 4),
    strategies.integers(0, 3),
    strategies.sampled_from([(True, False), (False, False), (False, True)]),
)
def test_batches_of_rows_are_those_of_earlier_versions(sizes, size, world_size, epoch, order):
    shuffle, longest_first = order
    found = ranks(FixedBatches, sizes, size, world_size, epoch=epoch, shuffle=shuffle, longest_first=longest_first)
    options = (world_size, epoch, 1, shuffle, longest_first)
    assert found == [share_of_before(sizes, size, rank, *options) for rank in range(world_size)]
    assert sorted(flat(found)) == list(range(len(sizes)))


def test_the_order_follows_from_seed_and_epoch_alone():
    twenty = [1] * 20
    for kind in (FixedBatches, TokenBatches):
        first = ranks(kind, twenty, 4)
        assert first == ranks(kind, twenty, 4)
        assert first != ranks(kind, twenty, 4, seed=2)
        assert first != ranks(kind, twenty, 4, epoch=1)
        order = kind(twenty, 4, shuffle=True, seed=1)
        for epoch in (3, 1):  # whatever came before
            order.set_epoch(epoch)
            assert [list(order)] == ranks(kind, twenty, 4, epoch=epoch)


def test_rows_that_are_not_shuffled_come_as_in_the_file_or_longest_first():
    sizes = [2, 9, 2, 5, 9]
    for epoch in (0, 2):
        options = {"epoch": epoch, "shuffle": False}
        assert ranks(FixedBatches, sizes, 2, **options) == [[[0, 1], [2, 3], [4]]]
        assert ranks(FixedBatches, sizes, 2, **options, longest_first=True) == [[[1, 4], [3, 0], [2]]]
        assert ranks(TokenBatches, sizes, 10, **options) == [[[0], [1], [2, 3], [4]]]
        assert ranks(TokenBatches, sizes, 10, **options, longest_first=True) == [[[1], [4], [3, 0], [2]]]
