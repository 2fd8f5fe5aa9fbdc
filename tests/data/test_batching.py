"""Rows into batches: a function of seed and epoch, shared out so that every row counts once and none waits."""

from types import SimpleNamespace

import hypothesis
import pytest
import torch
from hypothesis import strategies
from support.batch_orders import flat, ranks
from torch.utils.data import DataLoader

from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.data.kinds.sft import EncodedSFT
from dpo_lightning.data.samplers import (
    BUCKET_RATIO,
    FixedBatches,
    RowDataset,
    TokenBatches,
    bucket_bounds,
    check_batch_size,
    describe_steps,
    prepare_epoch,
)
from dpo_lightning.errors import ExitCode, UserError

LAYOUTS = (Padded(), Packed(), SharedPrefix(), PackedSharedPrefix())


def test_a_filler_is_the_row_that_it_names():
    rows = RowDataset(["a", "b", "c", "d"])
    assert rows[[1, ~2, 3, ~0]] == [("b", 1), ("c", -1), ("d", 3), ("a", -1)]
    assert len(rows) == 4


# Batches of at most so many tokens

BUDGETS = strategies.lists(strategies.integers(1, 60), min_size=1, max_size=60).flatmap(
    lambda sizes: strategies.tuples(strategies.just(sizes), strategies.integers(max(sizes), 4 * max(sizes)))
)
ORDERS = strategies.sampled_from([(True, False), (False, False), (False, True)])


@hypothesis.given(BUDGETS, strategies.integers(1, 4), ORDERS, strategies.integers(0, 5))
def test_a_token_budget_holds_and_every_row_is_given_once(rows, world_size, order, seed):
    (sizes, most), (shuffle, longest_first), counts = rows, order, set()
    for epoch in (0, 1, 7):
        options = {"epoch": epoch, "seed": seed, "shuffle": shuffle, "longest_first": longest_first}
        shares = ranks(TokenBatches, sizes, most, world_size, **options)
        assert sorted(flat(shares)) == list(range(len(sizes)))
        assert sum(row < 0 for share in shares for batch in share for row in batch) == -len(sizes) % world_size
        for batch in (batch for share in shares for batch in share):
            assert batch
            assert len(batch) * max(sizes[max(row, ~row)] for row in batch) <= most
        counts |= {len(share) for share in shares}
    assert len(counts) == 1  # each rank, each epoch


@hypothesis.given(BUDGETS, strategies.integers(2, 4), strategies.integers(0, 3))
def test_ranks_have_the_same_work_where_their_rows_are_of_one_bucket(rows, world_size, epoch):
    sizes, most = rows
    bounds = bucket_bounds(sizes)
    for step in zip(*ranks(TokenBatches, sizes, most, world_size, epoch=epoch), strict=True):
        assert len({len(batch) for batch in step}) == 1
        given = [[max(row, ~row) for row in batch] for batch in step]
        if len({bounds[row] for batch in given for row in batch}) == 1:
            work = [sum(sizes[row] for row in batch) for batch in given]
            assert max(work) <= BUCKET_RATIO * min(work)


def test_most_steps_are_of_one_bucket_and_full():
    """What a test of single steps cannot tell: 400 rows of 20 to 400 tokens on 4 ranks."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(20, 400, (400,), generator=draw).tolist()
    steps = list(zip(*ranks(TokenBatches, sizes, 2000, 4), strict=True))
    work = [[sum(sizes[max(row, ~row)] for row in batch) for batch in step] for step in steps]
    assert sum(max(ranks_of) <= BUCKET_RATIO * min(ranks_of) for ranks_of in work) > 0.8 * len(steps)
    assert sum(map(sum, work)) > 0.8 * 2000 * 4 * len(steps)
    assert len({len(step[0]) for step in steps}) > 5


def test_a_filler_is_a_short_row():
    shares = ranks(TokenBatches, [10, 80, 10], 100, 2, shuffle=False, longest_first=True)
    assert shares == [[[1], [2]], [[0], [~2]]]


def test_epochs_mix_rows_within_buckets_and_groups_among_each_other():
    sizes = [size for size in (10, 20, 40, 80) for _ in range(16)]
    first, second = (ranks(TokenBatches, sizes, 160, epoch=epoch)[0] for epoch in (0, 1))
    assert [len(batch) for batch in first] != [len(batch) for batch in second]
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    lengths = [max(sizes[row] for row in batch) for batch in first]
    assert lengths != sorted(lengths, reverse=True)
    assert all(len({sizes[row] for row in batch}) == 1 for batch in first)


def test_a_buckets_bound_is_its_largest_size():
    assert bucket_bounds([10, 100, 84, 83, 70, 69, 100]) == [10, 100, 100, 83, 83, 69, 100]
    assert bucket_bounds([]) == []


@hypothesis.given(strategies.lists(strategies.integers(0, 10_000)))
def test_bounds_are_within_the_ratio(sizes):
    for size, bound in zip(sizes, bucket_bounds(sizes), strict=True):
        assert size <= bound <= BUCKET_RATIO * size


def test_how_full_batches_are_is_told():
    order = TokenBatches([50, 50, 100, 25], 100, shuffle=False, seed=0, longest_first=True)
    assert list(order) == [[2], [0, 1], [3]]
    assert order.use() == "75% of max_tokens used, 1 to 2 rows each"
    lonely = TokenBatches([50], 100, shuffle=False, seed=0, rank=1, world_size=2)
    assert list(lonely) == [[~0]]
    assert lonely.use() == "25% of max_tokens used, 0 to 1 rows each"


# Rows and their tokens


def pair(prompt, chosen, rejected, line=1):
    """A pair of answers."""
    answers = [EncodedAnswer(ids, [True] * len(ids)) for ids in (chosen, rejected)]
    return EncodedPair(Origin("f", line), prompt, tuple(answers))


TOKENS = strategies.lists(strategies.integers(1, 3), min_size=1, max_size=6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: type(layout).__name__)
@hypothesis.given(strategies.lists(strategies.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4))
def test_a_rows_tokens_are_what_the_layout_has_for_it(layout, texts):
    """And no batch has more than its longest row, times the number of rows."""
    rows = [pair(*ids) for ids in texts]
    tokens = [layout.tokens(row) for row in rows]
    assert tokens == [layout.collate([row], [0]).input_ids.numel() for row in rows]
    assert layout.collate(rows, range(len(rows))).input_ids.numel() <= len(rows) * max(tokens)
    completions = [EncodedSFT(row.origin, row.prompt_ids, row.answers[:1]) for row in rows]
    tokens = [layout.tokens(row) for row in completions]
    assert tokens == [layout.collate([row], [0]).input_ids.numel() for row in completions]
    assert layout.collate(completions, range(len(rows))).input_ids.numel() <= len(rows) * max(tokens)


def test_tokens_by_hand():
    """4 tokens of prompt; answers of 3 and 5 with 2 in common: the last token of each predicts nothing."""
    row = pair([1, 2, 3, 4], [5, 6, 7], [5, 6, 8, 9, 9])
    assert [layout.tokens(row) for layout in LAYOUTS] == [18, 14, 8, 8]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("kind", "most"), [(FixedBatches, 1), (FixedBatches, 3), (TokenBatches, 4), (TokenBatches, 9)])
def test_batches_of_any_size_on_any_number_of_ranks_count_the_same_rows(kind, most, world_size):
    encoded = [pair([1], [k + 2], [9]) for k in range(5)]
    counted = []
    for rank in range(world_size):
        order = kind([4] * 5, most, shuffle=True, seed=1, rank=rank, world_size=world_size)
        collate = lambda items: Padded().collate(*zip(*items, strict=True))  # noqa: E731
        for batch in DataLoader(RowDataset(encoded), batch_size=None, sampler=order, collate_fn=collate):
            assert batch.num_sequences == 2 * len(batch.indices)
            for place, index in enumerate(batch.indices.tolist()):
                said = int(batch.input_ids[place, 1])
                assert index in (-1, said - 2)
                if index >= 0:
                    counted.append(said - 2)
    assert sorted(counted) == list(range(5))


def test_rows_that_fit_into_no_batch_are_named_with_the_remedy():
    """All of them at once, so that one remedy does."""
    rows = {"train": [pair([1] * 9, [2], [3], 1), pair([1], [2], [3], 2)], "eval": [pair([1] * 20, [2], [3], 3)]}
    with pytest.raises(UserError, match=r"fix: --data\.max_tokens 42 or more, or a lower --data\.max_length") as told:
        check_batch_size(rows, 4, 19, Padded(), 1)
    assert [str(problem) for problem in told.value.problems] == [
        "the row has 20 tokens, more than max_tokens=19 at f:1",
        "the row has 42 tokens, more than max_tokens=19 at f:3",
    ]
    check_batch_size(rows, 4, 42, Padded(), 1)
    check_batch_size(rows, 2, None, Padded(), 1)


def test_a_rank_without_a_row_is_refused():
    rows = {"train": [pair([1], [2], [3])] * 3}
    check_batch_size(rows, 4, 50, Padded(), 3)
    with pytest.raises(UserError, match="3 training rows are fewer than the 4 devices") as told:
        check_batch_size(rows, 4, 50, Padded(), 4)
    assert told.value.code == ExitCode.CONFIG
    assert told.value.fix == "--trainer.devices 3 or fewer in all, or more rows"
    with pytest.raises(UserError, match="3 training rows are fewer than one batch") as told:
        check_batch_size(rows, 4, None, Padded(), 1)
    assert told.value.fix == "--data.batch_size 3 or more rows"


@pytest.mark.parametrize(("size", "world_size"), [(3, 1), (3, 3), (2, 2)])
def test_as_many_rows_as_one_batch_of_all_ranks_do(size, world_size):
    rows = [pair([1], [2], [3])] * (size * world_size)
    check_batch_size({"train": rows, "eval": rows[:1]}, size, None, Padded(), world_size)
    with pytest.raises(UserError, match=rf"{len(rows) - 1} training rows are fewer than one batch \({size} x") as told:
        check_batch_size({"train": rows[1:]}, size, None, Padded(), world_size)
    assert told.value.fix == f"--data.batch_size {(len(rows) - 1) // world_size} or more rows"


# What is said of an epoch


@pytest.mark.parametrize(
    ("batches", "accumulate", "epochs", "most", "told"),
    [
        (10, 4, 2, -1, "6 steps"),  # 4 + 4 + 2 batches, twice
        (8, 4, 2, -1, "4 steps"),
        (9, 4, 1, -1, "3 steps"),
        (10, 4, 2, 6, "6 steps"),
        (10, 4, 2, 7, "6 steps"),
        (10, 4, 2, 5, "6 steps; capped at 5 by trainer.max_steps (-1 takes all)"),
        (10, 4, 2, 0, "6 steps; capped at 0 by trainer.max_steps (-1 takes all)"),
        (10, 4, None, -1, "3 steps"),
        (10, 1, -1, -1, "unlimited steps"),
        (10, 1, -1, 3, "unlimited steps; capped at 3 by trainer.max_steps (-1 takes all)"),
    ],
)
def test_the_steps_of_a_run(batches, accumulate, epochs, most, told):
    trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate, max_epochs=epochs, max_steps=most, limit_train_batches=1.0
    )
    assert describe_steps(trainer, batches) == told


@pytest.mark.parametrize(("limit", "told"), [(7, "6 steps"), (1, "2 steps"), (10, "8 steps"), (0.5, "4 steps")])
def test_the_steps_of_a_run_on_a_part_of_each_epoch(limit, told):
    """10 batches, 3 a step, two epochs; `overfit_batches` sets the same limit."""
    trainer = SimpleNamespace(accumulate_grad_batches=3, max_epochs=2, max_steps=-1, limit_train_batches=limit)
    assert describe_steps(trainer, 10) == told


@pytest.mark.parametrize(
    ("every", "epochs", "left"), [(5, 1, 5), (6, 1, 1.0), (4, 1, 4), (1.0, 1, 1.0), (0.5, 1, 0.5), (6, None, 6)]
)
def test_an_interval_beyond_the_epoch_ends_with_it(every, epochs, left, capsys):
    """5 batches; without `check_val_every_n_epoch` lightning counts on across epochs."""
    trainer = SimpleNamespace(val_check_interval=every, check_val_every_n_epoch=epochs, limit_train_batches=1.0)
    prepare_epoch(trainer, FixedBatches([1] * 9, 2), Padded())
    assert trainer.val_check_interval == left
    assert ("exceeds the 5 batches of an epoch" in capsys.readouterr().out) == (every != left)


@pytest.mark.parametrize(("every", "limit", "left"), [(3, 3, 3), (4, 3, 1.0), (3, 0.5, 1.0), (2, 0.5, 2)])
def test_an_interval_beyond_the_part_of_an_epoch_that_is_trained_on_ends_with_it(every, limit, left):
    """5 batches, of which lightning takes 3, or 2."""
    trainer = SimpleNamespace(val_check_interval=every, check_val_every_n_epoch=1, limit_train_batches=limit)
    prepare_epoch(trainer, FixedBatches([1] * 9, 2), Padded())
    assert trainer.val_check_interval == left


# The middle of an epoch


@pytest.mark.parametrize(("kind", "most"), [(FixedBatches, 2), (TokenBatches, 100)])
def test_an_order_goes_on_behind_any_batch_on_any_rank(kind, most):
    sizes = list(range(10, 50, 3))
    for rank in (0, 1):
        options = {"shuffle": True, "seed": 5, "rank": rank, "world_size": 2}
        order = kind(sizes, most, **options)
        order.set_epoch(3)
        whole = list(order)
        for done in range(len(whole)):
            other = kind(sizes, most, **options)
            other.load_state(order.state(done, ended=False))
            other.set_epoch(3)
            assert list(other) == whole[done:]
            assert len(other) == len(whole)
            other.set_epoch(4)
            assert len(list(other)) == len(whole)
        other.load_state(order.state(len(whole), ended=True))
        order.set_epoch(4)
        assert list(other) == list(order)  # also where nobody tells the epoch


def test_another_epoch_is_not_taken_up_in_its_middle():
    state = FixedBatches([1] * 9, 2, shuffle=True, seed=5).state(2, ended=False)
    for sizes, most, seed in (([1] * 8, 2, 5), ([1] * 9, 3, 5), ([1] * 9, 2, 6)):
        with pytest.raises(UserError, match=r"and this run.s batches differ from its at ckpt_path"):
            FixedBatches(sizes, most, shuffle=True, seed=seed).load_state(state)
    end = FixedBatches([1] * 9, 2, shuffle=True, seed=5).state(5, ended=True)
    FixedBatches([1] * 8, 2, shuffle=True, seed=5).load_state(end)  # more rows, from the next epoch on


def test_another_number_of_ranks_takes_the_same_rows():
    """As long as a step has as many of them in all: 1 x 4, 2 x 2 and 4 x 1 rows."""
    sizes = [1] * 22

    def rows(most, ranks, state=None):
        options = {"shuffle": True, "seed": 5, "world_size": ranks}
        orders = [FixedBatches(sizes, most, rank=rank, **options) for rank in range(ranks)]
        for order in orders if state else ():
            order.load_state(state | {"batches": state["rows"] // order.rows_per_step})
        steps = zip(*orders, strict=True)
        return [sorted(row for batch in step for row in batch if row >= 0) for step in steps], orders[0]

    whole, order = rows(4, 1)
    state = order.state(3, ended=False)
    assert rows(2, 2, state)[0] == rows(1, 4, state)[0] == whole[3:]
