"""The order of rows: a function of seed and epoch, shared out so that every row counts once."""

import pytest
from torch.utils.data import DataLoader

from dpo_lightning.data.batching import SeededOrder
from dpo_lightning.data.collate import Padded
from dpo_lightning.data.datamodule import Rows
from dpo_lightning.types import EncodedAnswer, EncodedPair, Origin


def shares(size, world_size, *, shuffle=True, seed=1, epoch=0):
    orders = [
        SeededOrder(size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for order in orders:
        order.set_epoch(epoch)
    return [list(order) for order in orders]


def test_the_order_follows_from_seed_and_epoch_alone():
    assert shares(20, 1) == shares(20, 1)
    assert shares(20, 1) != shares(20, 1, seed=2)
    assert shares(20, 1) != shares(20, 1, epoch=1)
    assert shares(20, 1, epoch=3) == shares(20, 1, epoch=3)
    assert sorted(shares(20, 1)[0]) == list(range(20))


def test_without_shuffling_the_order_is_the_files_in_every_epoch():
    assert shares(5, 1, shuffle=False, epoch=2) == [[0, 1, 2, 3, 4]]


def test_rows_that_are_not_shuffled_come_longest_first_and_equal_ones_as_in_the_file():
    assert list(SeededOrder(5, shuffle=False, seed=1, lengths=[2, 9, 2, 5, 9])) == [1, 4, 3, 0, 2]
    shuffled = list(SeededOrder(20, shuffle=True, seed=1, lengths=list(range(20))))
    assert shuffled == shares(20, 1)[0]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7])
def test_every_row_is_given_once_and_fillers_are_marked(size, world_size, shuffle):
    given = shares(size, world_size, shuffle=shuffle)
    assert len({len(share) for share in given}) == 1
    assert sorted(index for share in given for index in share if index >= 0) == list(range(size))
    fillers = [index for share in given for index in share if index < 0]
    assert len(fillers) == -size % world_size
    assert all(0 <= ~index < size for index in fillers)


def test_the_length_that_a_loader_is_told_is_the_length_of_the_share():
    order = SeededOrder(7, shuffle=True, seed=1, rank=2, world_size=3)
    assert len(order) == len(list(order)) == 3


def test_ranks_together_follow_the_order_of_a_single_one():
    alone = shares(6, 1)[0]
    first, second = shares(6, 2)
    assert [index for both in zip(first, second, strict=True) for index in both] == alone


def batches(size, batch_size, world_size):
    """The batches of every rank, as the data module's loader makes them."""
    encoded = [
        EncodedPair(Origin("f", k), [1], EncodedAnswer([k + 2], [True]), EncodedAnswer([9], [True]))
        for k in range(size)
    ]
    for rank in range(world_size):
        order = SeededOrder(size, shuffle=True, seed=1, rank=rank, world_size=world_size)
        collate = lambda items: Padded().pairs(*zip(*items, strict=True))  # noqa: E731
        yield from DataLoader(Rows(encoded), batch_size=batch_size, sampler=order, collate_fn=collate)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_of_any_size_on_any_number_of_ranks_count_the_same_rows(batch_size, world_size):
    counted = []
    for batch in batches(5, batch_size, world_size):
        assert batch.num_sequences == 2 * len(batch.indices)
        for place, index in enumerate(batch.indices.tolist()):
            said = int(batch.input_ids[place, 1])
            assert index in (-1, said - 2)
            if index >= 0:
                counted.append(said - 2)
    assert sorted(counted) == list(range(5))
