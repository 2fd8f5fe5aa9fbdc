"""Hand-worked batches: the shift by one, padding by length, and positions."""

import pytest
import torch
from tiny import turns

from dpo_lightning.data.collate import Padded, shifted_targets
from dpo_lightning.data.rendering import Renderer
from dpo_lightning.data.tokenization import Encoder
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.types import IGNORE, EncodedAnswer, EncodedPair, EncodedSFT, Origin, PreferenceExample

ORIGIN = Origin("pairs.jsonl", 7)
X = IGNORE


def answer(*ids, scored=None):
    return EncodedAnswer(ids, [True] * len(ids) if scored is None else scored)


def pair(prompt, chosen, rejected):
    return EncodedPair(ORIGIN, prompt, answer(*chosen), answer(*rejected))


TWO = [pair([1, 2, 3], [4, 5], [6]), pair([7, 8], [9, 10], [11, 12, 13])]


def test_all_chosen_answers_come_first_then_all_rejected_ones():
    batch = Padded().pairs(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 0], [1, 2, 3, 6, 0], [7, 8, 11, 12, 13]]
    assert batch.targets.tolist() == [[X, X, 4, 5, X], [X, 9, 10, X, X], [X, X, 6, X, X], [X, 11, 12, 13, X]]
    assert batch.mask.tolist() == [[True] * 5, [True] * 4 + [False], [True] * 4 + [False], [True] * 5]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert batch.sequence_ids.tolist() == [[k] * 5 for k in range(4)]
    assert batch.indices.tolist() == [0, 1]
    assert batch.num_sequences == 4


def test_padding_on_the_left_keeps_positions_and_targets_with_their_tokens():
    batch = Padded(side="left").pairs(TWO, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [0, 7, 8, 9, 10], [0, 1, 2, 3, 6], [7, 8, 11, 12, 13]]
    assert batch.targets.tolist() == [[X, X, 4, 5, X], [X, X, 9, 10, X], [X, X, X, 6, X], [X, 11, 12, 13, X]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert batch.mask.tolist() == [[True] * 5, [False] + [True] * 4, [False] + [True] * 4, [True] * 5]


def test_the_width_is_rounded_up_to_a_multiple():
    batch = Padded(pad_to_multiple_of=5).pairs([pair([1], [2], [3]), pair([4, 5], [6, 7], [8, 9])], [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 0, 0, 0], [4, 5, 6, 7, 0], [1, 3, 0, 0, 0], [4, 5, 8, 9, 0]]
    assert Padded(pad_to_multiple_of=5).pairs(TWO, [0, 1]).input_ids.shape == (4, 5)
    assert Padded(pad_to_multiple_of=4).pairs(TWO, [0, 1]).input_ids.shape == (4, 8)


def test_a_demonstration_is_one_sequence():
    batch = Padded().demonstrations(
        [EncodedSFT(ORIGIN, [1], answer(2, 3)), EncodedSFT(ORIGIN, [], answer(4, 5))], [5, -1]
    )
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.targets.tolist() == [[2, 3, X], [5, X, X]]
    assert batch.indices.tolist() == [5, -1]
    assert batch.num_sequences == 2


def test_only_scored_tokens_become_targets():
    said = answer(3, 4, 5, 6, scored=[True, False, False, True])
    assert shifted_targets(2, said).tolist() == [X, 3, X, X, 6, X]


def test_the_first_token_of_all_is_predicted_by_nothing_and_not_counted():
    batch = Padded().pairs([pair([], [4, 5, 6], [7])], [0])
    assert batch.targets.tolist() == [[5, 6, X], [X, X, X]]
    assert (batch.targets != X).sum(dim=1).tolist() == [2, 0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_pad_token_that_equals_eos_hides_no_eos(side, chat_tokenizer):
    assert chat_tokenizer.pad_token_id == chat_tokenizer.eos_token_id
    rows = [
        PreferenceExample(ORIGIN, "Hello", "Hi", "I am fine, thank you"),
        PreferenceExample(ORIGIN, "Well?", "46", "No"),
    ]
    encoded = Encoder(Renderer(chat_tokenizer), 100).pairs(rows)
    batch = Padded(side=side).pairs(encoded, [0, 1])
    for row, (prompt, said) in enumerate((e.prompt_ids, a) for k in (0, 1) for e in encoded for a in [e.answers[k]]):
        targets = batch.targets[row][batch.targets[row] != IGNORE]
        assert targets.tolist() == list(said.ids)
        assert targets[-1] == chat_tokenizer.eos_token_id
        assert batch.mask[row].sum() == len(prompt) + len(said.ids)
        assert batch.input_ids[row][batch.mask[row]].tolist() == [*prompt, *said.ids]


def test_an_eos_inside_a_conversation_is_attended_to(chat_tokenizer):
    prompt = turns(("user", "Hello"), ("assistant", "Hi"), ("user", "Well?"))
    row = PreferenceExample(ORIGIN, prompt, turns(("assistant", "I am fine")), turns(("assistant", "No")))
    encoded = Encoder(Renderer(chat_tokenizer), 200).pairs([row])
    batch = Padded().pairs(encoded, [0])
    ends = (batch.input_ids[0] == chat_tokenizer.eos_token_id).nonzero().flatten()
    assert len(ends) == 5
    assert batch.mask[0, ends].all()
    assert batch.mask[0].all()


def test_a_row_does_not_depend_on_its_neighbours():
    alone = [Padded().pairs([row], [k]) for k, row in enumerate(TWO)]
    together = Padded().pairs(TWO, [0, 1])
    for k, batch in enumerate(alone):
        for own, shared in ((0, k), (1, 2 + k)):
            real = together.mask[shared]
            kept = batch.mask[own]
            for name in ("input_ids", "targets", "position_ids"):
                assert torch.equal(getattr(together, name)[shared][real], getattr(batch, name)[own][kept])


def test_a_multiple_below_one_is_refused_with_its_key():
    with pytest.raises(UserError, match=r"data\.collator") as told:
        Padded(pad_to_multiple_of=0)
    assert told.value.code == ExitCode.CONFIG


def test_ids_are_long_whatever_the_sequences_are_made_of():
    batch = Padded().pairs([pair((1,), (2,), (3,))], (0,))
    assert {value.dtype for value in batch} == {torch.long, torch.bool}
