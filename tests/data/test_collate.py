"""Hand-worked batches of every layout: the shift by one, padding by length, positions, and what sees what."""

import hypothesis
import pytest
import torch
from hypothesis import strategies
from support.batch_layouts import LAYOUTS, ORIGIN, TREES, answer, expected, pair, read_back
from support.tiny_models import turns

from dpo_lightning.batches import Tree
from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.kinds.pairs import EncodedPair, PairExample
from dpo_lightning.data.kinds.ranked import EncodedRanked
from dpo_lightning.data.kinds.sft import EncodedSFT
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired
from dpo_lightning.errors import ExitCode, UserError

TWO = [pair([1, 2, 3], [4, 5], [6]), pair([7, 8], [9, 10], [11, 12, 13])]
TARGETS = [4, 5, 9, 10, 6, 11, 12, 13]
OWNERS = [0, 0, 1, 1, 2, 3, 3, 3]


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """Each layout."""
    return LAYOUTS[request.param]


# Tensors by hand


def test_all_chosen_answers_come_first_then_all_rejected_ones():
    batch = Padded().collate(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 0], [1, 2, 3, 6, 0], [7, 8, 11, 12, 13]]
    assert batch.places.tolist() == [2, 3, 6, 7, 12, 16, 17, 18]
    assert batch.targets.tolist() == TARGETS
    assert batch.sequence_ids.tolist() == OWNERS
    assert batch.mask.tolist() == [[True] * 5, [True] * 4 + [False], [True] * 4 + [False], [True] * 5]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert batch.trees == ()
    assert batch.indices.tolist() == [0, 1]
    assert batch.num_sequences == 4


def test_rows_weigh_what_they_say_and_fillers_nothing(layout):
    """Whatever a row's index is; a margin that is not given is 0."""
    ids, indices = (answer(2), answer(3)), [7, 0, -1, 2]
    weights, counted = (0.5, 3.0, 9.0, 0.0), [0.5, 3.0, 0.0, 0.0]
    margins = (None, 2.5, 1.0, 0.0)
    rows = [EncodedPair(ORIGIN, [1], ids, *options) for options in zip(weights, margins, strict=True)]
    batch = layout.collate(rows, indices)
    assert (batch.weights.tolist(), batch.indices.tolist()) == (counted, indices)
    assert batch.columns["margins"].tolist() == [0.0, 2.5, 1.0, 0.0]
    verdicts = [True, False, True, False]
    labelled = zip(verdicts, weights, strict=True)
    unpaired = [EncodedUnpaired(ORIGIN, [1], ids[:1], weight, good=good) for good, weight in labelled]
    batch = layout.collate(unpaired, indices)
    assert (batch.weights.tolist(), batch.indices.tolist()) == (counted, indices)
    assert batch.columns["good"].tolist() == verdicts
    ranked = layout.collate([EncodedRanked(ORIGIN, [1], ids, weight) for weight in weights], indices)
    assert (ranked.weights.tolist(), ranked.indices.tolist()) == (counted, indices)
    shown = layout.collate([EncodedSFT(ORIGIN, [1], ids[:1])] * 4, indices)
    assert shown.indices.tolist() == indices


def test_padding_on_the_left_keeps_positions_and_targets_with_their_tokens():
    batch = Padded(side="left").collate(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [0, 7, 8, 9, 10], [0, 1, 2, 3, 6], [7, 8, 11, 12, 13]]
    assert batch.places.tolist() == [2, 3, 7, 8, 13, 16, 17, 18]
    assert batch.targets.tolist() == TARGETS
    assert batch.sequence_ids.tolist() == OWNERS
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert batch.mask.tolist() == [[True] * 5, [False] + [True] * 4, [False] + [True] * 4, [True] * 5]


def test_a_shared_prefix_stands_once_and_its_last_token_predicts_both_answers():
    batch = SharedPrefix().collate(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 0], [7, 8, 9, 11, 12]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 2, 3]]
    assert batch.mask.tolist() == [[True] * 4 + [False], [True] * 5]
    assert batch.places.tolist() == [2, 3, 6, 7, 2, 6, 8, 9]
    assert batch.targets.tolist() == TARGETS
    assert batch.sequence_ids.tolist() == OWNERS
    assert batch.trees == (Tree(0, 0, 3, (1, 0), (0, 2)), Tree(1, 0, 2, (1, 2), (1, 3)))
    assert batch.num_sequences == 4


def test_packed_pairs_that_share_a_prefix_need_no_padding():
    batch = PackedSharedPrefix().collate(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 7, 8, 9, 11, 12]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 2, 3]]
    assert batch.mask.all()
    assert batch.places.tolist() == [2, 3, 5, 6, 2, 5, 7, 8]
    assert batch.targets.tolist() == TARGETS
    assert batch.sequence_ids.tolist() == OWNERS
    assert batch.trees == (Tree(0, 0, 3, (1, 0), (0, 2)), Tree(0, 4, 2, (1, 2), (1, 3)))


def test_packed_sequences_stand_in_one_row_each_from_position_zero():
    batch = Packed().collate(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 1, 2, 3, 7, 8, 9, 7, 8, 11, 12]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3]]
    assert batch.places.tolist() == [2, 3, 8, 9, 6, 11, 12, 13]
    assert batch.targets.tolist() == TARGETS
    assert batch.sequence_ids.tolist() == OWNERS
    assert batch.trees == tuple(
        Tree(0, start, trunk, (0,), (number,)) for start, trunk, number in [(0, 4, 0), (4, 3, 2), (7, 3, 1), (10, 4, 3)]
    )


def test_the_width_is_rounded_up_to_a_multiple():
    batch = Padded(pad_to_multiple_of=5).collate([pair([1], [2], [3]), pair([4, 5], [6, 7], [8, 9])], [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 0, 0, 0], [4, 5, 6, 7, 0], [1, 3, 0, 0, 0], [4, 5, 8, 9, 0]]
    assert Padded(pad_to_multiple_of=5).collate(TWO, [0, 1]).input_ids.shape == (4, 5)
    assert Padded(pad_to_multiple_of=4).collate(TWO, [0, 1]).input_ids.shape == (4, 8)
    assert SharedPrefix(4).collate(TWO, [0, 1]).input_ids.shape == (2, 8)
    batch = PackedSharedPrefix(6).collate(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 7, 8, 9, 11, 12, 0, 0, 0]]
    assert batch.mask.tolist() == [[True] * 9 + [False] * 3]


def test_a_demonstration_is_one_sequence():
    rows = [EncodedSFT(ORIGIN, [1], (answer(2, 3),)), EncodedSFT(ORIGIN, [], (answer(4, 5),))]
    batch = Padded().collate(rows, [5, -1])
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.places.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [2, 3, 5]
    assert batch.sequence_ids.tolist() == [0, 0, 1]
    assert batch.indices.tolist() == [5, -1]
    assert batch.num_sequences == 2
    for packed in (Packed(), PackedSharedPrefix()):
        batch = packed.collate(rows, [5, -1])
        assert batch.input_ids.tolist() == [[1, 2, 4]]
        assert batch.position_ids.tolist() == [[0, 1, 0]]
        assert batch.places.tolist() == [0, 1, 2]
        assert batch.trees == (Tree(0, 0, 2, (0,), (0,)), Tree(0, 2, 1, (0,), (1,)))


# Every layout


CASES = {
    "plain": pair([1, 2], [3, 4], [4]),
    "no prompt": pair([], [4, 5, 6], [7, 8]),
    "one token and no prompt": pair([], [4], [5]),
    "one token": pair([1, 2], [3], [4]),
    "one of them empty": pair([1, 2], [], [4]),
    "nothing at all": pair([], [], []),
    "nothing scored": pair([1], answer(2, 3, scored=[False, False]), answer(4, scored=[False])),
    "turns": pair(
        [1], answer(2, 3, 4, 5, scored=[True, False, False, True]), answer(2, 3, 5, scored=[True, False, True])
    ),
    "cut": pair([1, 2], answer(3, 4, 5, cut=True), answer(6, 7)),
    "long common beginning": pair([1], [2, 3, 4, 5, 0], [2, 3, 4, 6, 7, 0]),
    "beginning of the other": pair([1], [2, 3], [2, 3, 4]),
    "equal": pair([1], [2, 3, 0], [2, 3, 0]),
    "scored on one side": pair([1], answer(2, 3, scored=[True, True]), answer(2, 3, scored=[False, True])),
}


@pytest.mark.parametrize("case", CASES)
def test_each_scored_token_is_predicted_from_all_before_it_and_nothing_else(layout, case):
    batch = layout.collate([CASES[case]], [0])
    assert read_back(batch) == expected([CASES[case]])


def test_so_it_is_in_one_batch(layout):
    rows = list(CASES.values())
    batch = layout.collate(rows, range(len(rows)))
    assert read_back(batch) == expected(rows)
    assert batch.num_sequences == 2 * len(rows)


ids = strategies.lists(strategies.integers(0, 2), max_size=6)  # three tokens: common beginnings of any length
answers = strategies.lists(strategies.tuples(strategies.integers(0, 2), strategies.booleans()), max_size=6).map(
    lambda said: answer(*(id_ for id_, _ in said), scored=[own for _, own in said])
)


@hypothesis.given(rows=strategies.lists(strategies.builds(pair, ids, answers, answers), min_size=1, max_size=4))
def test_so_it_is_for_any_pairs(rows):
    for name, each in LAYOUTS.items():
        assert read_back(each.collate(rows, range(len(rows)))) == expected(rows), name


def test_a_layout_without_repetition_holds_no_token_that_predicts_nothing_new():
    rows = list(CASES.values())
    tokens = {name: int(LAYOUTS[name].collate(rows, range(len(rows))).mask.sum()) for name in LAYOUTS}
    whole = sum(len(row.prompt_ids) + len(said.ids) for row in rows for said in row.answers)
    empty = sum(not row.prompt_ids and not said.ids for row in rows for said in row.answers)
    assert tokens["padded"] == tokens["padded on the left"] == whole
    assert tokens["packed"] == whole - 2 * len(rows) + empty  # the last of a sequence predicts nothing
    assert tokens["shared prefix"] == tokens["packed shared prefix"] < tokens["packed"]
    assert PackedSharedPrefix().collate(rows, range(len(rows))).mask.all()


def test_only_scored_tokens_become_targets(layout):
    said = answer(3, 4, 5, 6, scored=[True, False, False, True])
    batch = layout.collate([EncodedSFT(ORIGIN, [1, 2], (said,))], [0])
    assert batch.targets.tolist() == [3, 6]
    assert read_back(batch) == [[([1, 2], [0, 1], 3), ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4], 6)]]


def test_the_first_token_of_all_is_predicted_by_nothing_and_not_counted(layout):
    batch = layout.collate([pair([], [4, 5, 6], [7])], [0])
    assert batch.targets.tolist() == [5, 6]
    assert batch.sequence_ids.tolist() == [0, 0]


def test_a_pad_token_that_equals_eos_hides_no_eos(layout, chat_tokenizer):
    assert chat_tokenizer.pad_token_id == chat_tokenizer.eos_token_id
    rows = [
        PairExample(ORIGIN, "Hello", ("Hi", "I am fine, thank you")),
        PairExample(ORIGIN, "Well?", ("46", "No")),
    ]
    encoded = Encoder(Renderer(chat_tokenizer), 100).encode(rows)
    batch = layout.collate(encoded, [0, 1])
    for number, (prompt, said) in enumerate((e.prompt_ids, e.answers[k]) for k in (0, 1) for e in encoded):
        targets = batch.targets[batch.sequence_ids == number]
        assert targets.tolist() == list(said.ids)
        assert targets[-1] == chat_tokenizer.eos_token_id
        if isinstance(layout, Padded):
            assert batch.mask[number].sum() == len(prompt) + len(said.ids)
            assert batch.input_ids[number][batch.mask[number]].tolist() == [*prompt, *said.ids]
    assert read_back(batch) == expected(encoded)


def test_an_eos_inside_a_conversation_is_attended_to(layout, chat_tokenizer):
    prompt = turns(("user", "Hello"), ("assistant", "Hi"), ("user", "Well?"))
    row = PairExample(ORIGIN, prompt, (turns(("assistant", "I am fine")), turns(("assistant", "No"))))
    batch = layout.collate(Encoder(Renderer(chat_tokenizer), 200).encode([row]), [0])
    for sequence in read_back(batch):
        seen, _, last = sequence[-1]
        assert seen.count(chat_tokenizer.eos_token_id) == 4
        assert last == chat_tokenizer.eos_token_id


def test_a_row_does_not_depend_on_its_neighbours(layout):
    together = read_back(layout.collate(TWO, [0, 1]))
    for k, row in enumerate(TWO):
        assert read_back(layout.collate([row], [k])) == [together[k], together[2 + k]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_multiple_below_one_is_refused_with_its_key(name):
    with pytest.raises(UserError, match=r"data\.collator") as told:
        type(LAYOUTS[name])(pad_to_multiple_of=0)
    assert told.value.code == ExitCode.CONFIG


def test_ids_are_long_whatever_the_sequences_are_made_of(layout):
    for row in (pair((1,), (2,), (3,)), pair([], [], [])):
        batch = layout.collate([row], (0,))
        kinds = {name: part.dtype for name, part in batch._asdict().items() if isinstance(part, torch.Tensor)}
        assert kinds.pop("mask") == torch.bool
        assert kinds.pop("weights") == batch.columns["margins"].dtype == torch.float32
        assert set(kinds.values()) == {torch.long}


def test_a_right_reading_is_not_found_in_wrong_batches():
    """What `read_back` is there to find: a target that stands one too early, and positions that are not reset."""
    for name in LAYOUTS:
        batch = LAYOUTS[name].collate(TWO, [0, 1])
        assert read_back(batch._replace(places=batch.places - 1)) != expected(TWO)
    for name in TREES:
        batch = LAYOUTS[name].collate(TWO, [0, 1])
        along = torch.arange(batch.position_ids.shape[1]).expand_as(batch.position_ids)
        assert read_back(batch._replace(position_ids=along)) != expected(TWO)
        one = tuple(tree._replace(trunk=tree.trunk + sum(tree.branches), branches=()) for tree in batch.trees)
        assert (read_back(batch._replace(trees=one)) == expected(TWO)) == (name == "packed")
