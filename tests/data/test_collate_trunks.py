"""The trunk of a pair: the tokens that both sequences begin with."""

import pytest
from support.batch_layouts import pair

from dpo_lightning.batches import Tree
from dpo_lightning.data.collate import PackedSharedPrefix, SharedPrefix


@pytest.mark.parametrize(
    ("chosen", "rejected", "tree", "ids"),
    [
        ([3, 4, 5, 7], [3, 4, 6, 7], (4, (1, 1)), [1, 2, 3, 4, 5, 6]),  # it reaches into the answers
        ([3, 4], [3, 4, 5], (3, (0, 1)), [1, 2, 3, 4]),  # one answer begins the other
        ([3, 4, 5, 6], [3], (2, (3, 0)), [1, 2, 3, 4, 5]),
        ([3, 4, 5], [3, 4, 5], (4, (0, 0)), [1, 2, 3, 4]),  # the answers are one
        ([3], [4], (2, (0, 0)), [1, 2]),
    ],
)
def test_the_trunk_is_all_that_both_begin_with_but_for_last_tokens(chosen, rejected, tree, ids):
    batch = SharedPrefix().collate([pair([1, 2], chosen, rejected)], [0])
    trunk, branches = tree
    assert batch.trees == (Tree(0, 0, trunk, branches, (0, 1)),)
    assert batch.input_ids.tolist() == [ids]


def test_a_position_of_the_trunk_may_predict_two_tokens():
    batch = PackedSharedPrefix().collate([pair([1], [2, 3, 5], [2, 4, 5])], [0])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]
    scored = list(zip(batch.places.tolist(), batch.targets.tolist(), batch.sequence_ids.tolist(), strict=True))
    assert scored == [(0, 2, 0), (1, 3, 0), (2, 5, 0), (0, 2, 1), (1, 4, 1), (3, 5, 1)]


def test_prompts_that_differ_share_what_they_have_in_common():
    """No such pair comes from a row; the trunk goes by ids all the same."""
    batch = PackedSharedPrefix().collate([pair([], [1, 2], [3, 4])], [0])
    assert batch.trees == (Tree(0, 0, 0, (1, 1), (0, 1)),)
    assert batch.position_ids.tolist() == [[0, 0]]
