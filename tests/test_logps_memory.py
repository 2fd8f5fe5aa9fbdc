"""What scoring keeps no longer than it needs: pieces of logits of a stated size, and no cache of keys and values."""

import pytest
import torch
from support.model_families import PAIRS, make

from dpo_lightning.data.collate import Padded
from dpo_lightning.logps import CACHED, CHUNK, score, split_for_cache, split_rows
from dpo_lightning.models.lm_head import find_head


def test_pieces_of_logits_have_the_stated_sizes():
    """64 MiB in bf16 for the whole batch, 4 MiB in float32 for a processor's caches."""
    assert CHUNK * torch.bfloat16.itemsize == 64 * 2**20
    assert CACHED * torch.float32.itemsize == 4 * 2**20


@pytest.mark.parametrize(
    ("vocabulary", "rows", "sizes"),
    [
        (2**18, 9, [4, 4, 1]),
        (2**18 + 1, 9, [3, 3, 3]),
        (2**19 + 1, 3, [1, 1, 1]),
        (2**20 + 1, 2, [1, 1]),  # a row alone is more than fits: it stays one
        (7, 5, [5]),
    ],
)
def test_a_piece_is_as_many_rows_as_fit(vocabulary, rows, sizes):
    logits, others = torch.empty(rows, vocabulary), torch.arange(rows)
    pieces = list(split_for_cache(logits, others))
    assert [len(piece) for piece, _ in pieces] == sizes
    assert torch.equal(torch.cat([own for _, own in pieces]), others)


def test_there_are_no_pieces_of_nothing():
    assert list(split_rows(3, torch.empty(0, 2), torch.empty(0))) == []
    assert [len(part) for (part,) in split_rows(3, torch.empty(7))] == [3, 3, 1]


@pytest.mark.parametrize("parts", [True, False])
def test_no_keys_and_values_are_kept(parts):
    """A model that is trained writes nothing: its cache would only hold memory."""
    model = make("llama")
    head, kept = find_head(model) if parts else None, []
    model.model.register_forward_hook(lambda module, given, output: kept.append(output.past_key_values))
    score(model, Padded().collate(PAIRS, range(len(PAIRS))), head)
    assert kept == [None]
