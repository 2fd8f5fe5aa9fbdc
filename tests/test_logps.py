"""Log-probabilities by hand, in any layout, and in enough precision."""

import math
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from support import tiny_models
from support.batch_layouts import LAYOUTS, ORIGIN, answer, pair
from torch import nn

from dpo_lightning.data.collate import Packed, PackedSharedPrefix, Padded, SharedPrefix
from dpo_lightning.data.kinds.sft import EncodedSFT
from dpo_lightning.logps import logps_of, reduce_by_sequence, score
from dpo_lightning.losses import IPOLoss
from dpo_lightning.models.attention_backend import install
from dpo_lightning.models.lm_head import find_head
from dpo_lightning.types import PairLogps, SequenceLogps, TokenLogps

PAIRS = [
    pair([11, 12, 13], [14, 15, 0], [16, 0]),
    pair([21], [22, 0], [23, 24, 25, 26, 27, 28, 0]),
    pair([31, 32, 33, 34, 35], [36, 37, 0], [36, 37, 38, 0]),
]
JUNK, NEVER = 12, -1e4


class Told(nn.Module):
    """A model that is told its log-probabilities: `{(token, position): {next token: logp}}`.

    What is asked of it beyond them costs 10,000 nats a token.
    """

    def __init__(self, told):
        super().__init__()
        self.vocabulary = JUNK + 1
        states = torch.full((self.vocabulary * 16, self.vocabulary), NEVER)
        states[:, JUNK] = 0
        for (token, position), following in told.items():
            row = states[token * 16 + position]
            row[list(following)] = torch.tensor(list(following.values()))
            row[JUNK] = math.log1p(-sum(map(math.exp, following.values())))
        self.states = nn.Parameter(states)

    def hidden(self, input_ids, position_ids, **other):
        return nn.functional.one_hot(input_ids * 16 + position_ids, len(self.states)).float()

    def logits(self, hidden):
        return hidden @ self.states

    def weights(self):
        return [self.states]

    def is_repeatable(self):
        return True

    def forward(self, input_ids, position_ids, logits_to_keep, **other):
        return SimpleNamespace(logits=self.logits(self.hidden(input_ids, position_ids)[:, logits_to_keep]))


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """Each layout."""
    return LAYOUTS[request.param]


# By hand


def test_equal_logits_give_minus_n_ln_v():
    values = logps_of(torch.zeros(3, 16), torch.tensor([3, 7, 15]))
    sums, lengths = reduce_by_sequence(TokenLogps(values, torch.tensor([0, 0, 1])), 2)[:2]
    assert sums.tolist() == pytest.approx([-5.545177, -2.772589], abs=1e-6)
    assert lengths.tolist() == [2, 1]


TURNS = pair([1], answer(2, 3, 4, 5, scored=[True, False, False, True]), answer(2, 3, 5, scored=[True, False, True]))
BY_HAND = {
    "answers of two and one tokens": (
        pair([1, 2], [3, 4], [4]),
        {(2, 1): {3: -1.0, 4: -2.0}, (3, 2): {4: -4.0}},
        ([-5.0, -2.0], [2, 1]),
    ),
    "no prompt: nothing predicts the first token": (
        pair([], [1, 2, 3], [4, 5]),
        {(1, 0): {2: -1.0}, (2, 1): {3: -2.0}, (4, 0): {5: -4.0}},
        ([-3.0, -4.0], [2, 1]),
    ),
    "one token each": (pair([1], [2], [3]), {(1, 0): {2: -1.0, 3: -2.0}}, ([-1.0, -2.0], [1, 1])),
    "one token each and no prompt": (pair([], [2], [3]), {}, ([0.0, 0.0], [0, 0])),
    "nothing scored": (pair([1], answer(2, scored=[False]), answer(3, scored=[False])), {}, ([0.0, 0.0], [0, 0])),
    "only the tokens of the model's own turns": (
        TURNS,
        {(1, 0): {2: -1.0}, (4, 3): {5: -2.0}, (3, 2): {5: -4.0}},
        ([-3.0, -5.0], [2, 2]),
    ),
    "a cut answer's last token": (
        pair([1], answer(2, 3, cut=True), answer(4, 5, 0)),
        {(1, 0): {2: -1.0, 4: -2.0}, (2, 1): {3: -4.0}, (4, 1): {5: -8.0}, (5, 2): {0: -16.0}},
        ([-5.0, -26.0], [2, 3]),
    ),
    "a position that predicts two tokens": (
        pair([1], [2, 3, 4, 6], [2, 3, 5, 6]),
        {(1, 0): {2: -1.0}, (2, 1): {3: -2.0}, (3, 2): {4: -4.0, 5: -8.0}, (4, 3): {6: -16.0}, (5, 3): {6: -32.0}},
        ([-23.0, -43.0], [4, 4]),
    ),
    "an answer that begins the other": (
        pair([1], [2, 3], [2, 3, 4]),
        {(1, 0): {2: -1.0}, (2, 1): {3: -2.0}, (3, 2): {4: -4.0}},
        ([-3.0, -7.0], [2, 3]),
    ),
    "one answer twice": (pair([1], [2, 3], [2, 3]), {(1, 0): {2: -1.0}, (2, 1): {3: -2.0}}, ([-3.0, -3.0], [2, 2])),
    "a word that stands twice": (
        pair([7, 7], [7, 8], [8, 7]),
        {(7, 1): {7: -1.0, 8: -2.0}, (7, 2): {8: -4.0}, (8, 2): {7: -8.0}},
        ([-5.0, -10.0], [2, 2]),
    ),
}


@pytest.mark.parametrize("in_two_parts", [False, True])
@pytest.mark.parametrize("case", BY_HAND)
def test_what_a_pair_comes_to(case, in_two_parts, layout):
    row, told, (sums, lengths) = BY_HAND[case]
    model = Told(told)
    logps = score(model, layout.collate([row], [0]), model if in_two_parts else None)
    assert logps.sums.tolist() == pytest.approx(sums, abs=1e-3)
    assert logps.lengths.tolist() == lengths
    (logps.sums / logps.lengths.clamp(min=1)).sum().backward()
    scored = model.states.grad.abs().sum(-1).nonzero().flatten().tolist()
    assert scored == sorted(token * 16 + position for token, position in told)


@pytest.mark.parametrize("in_two_parts", [False, True])
def test_what_a_batch_of_them_comes_to(in_two_parts, layout):
    cases = [BY_HAND[case] for case in BY_HAND if case not in ("a word that stands twice", "a cut answer's last token")]
    told = {state: {} for _, given, _ in cases for state in given}
    for _, given, _ in cases:
        for state, following in given.items():
            told[state] |= following
    rows = [row for row, _, _ in cases]
    model = Told({state: {token: -9.0 - token for token in following} for state, following in told.items()})
    together = score(model, layout.collate(rows, range(len(rows))), model if in_two_parts else None)
    for k, row in enumerate(rows):
        alone = score(model, Padded().collate([row], [0]))
        assert together.sums[[k, len(rows) + k]].tolist() == pytest.approx(alone.sums.tolist(), abs=1e-3)
        assert together.lengths[[k, len(rows) + k]].tolist() == alone.lengths.tolist()


def test_a_table_that_is_off_by_one_shows():
    """The tokens at their own places, and positions counted from one."""
    row, told, (sums, _) = BY_HAND["a position that predicts two tokens"]
    for off in (
        {(t, p + 1): {t: -1.0} for t, p in told},
        {(t, p + 1): following for (t, p), following in told.items()},
    ):
        assert score(Told(off), Padded().collate([row], [0])).sums.max() < min(sums) - 1000


def test_sums_are_reduced_by_sequence_and_not_by_row():
    tokens = TokenLogps(torch.tensor([-4.0, -7.0, -8.0, -1.0, -2.0]), torch.tensor([0, 1, 1, 2, 2]))
    sums, lengths = reduce_by_sequence(tokens, 4)[:2]
    assert sums.tolist() == [-4.0, -15.0, -3.0, 0.0]
    assert lengths.tolist() == [1, 2, 2, 0]


def test_a_sequence_without_a_scored_token_is_zero_and_has_no_gradient():
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums, lengths = reduce_by_sequence(TokenLogps(logps_of(logits[2:], torch.tensor([1])), torch.tensor([1])), 2)[:2]
    assert sums[0] == lengths[0] == 0
    (sums / lengths.clamp(min=1)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:2] == 0).all()
    assert (logits.grad[2] != 0).all()


def test_bf16_logits_lose_nothing_in_the_sum():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(1000, 300, generator=generator) * 4).bfloat16()
    targets = torch.randint(0, 300, (1000,), generator=generator)
    sums, lengths = reduce_by_sequence(TokenLogps(logps_of(logits, targets), torch.arange(1000) // 500), 2)[:2]
    exact = logits.double().log_softmax(-1).gather(-1, targets[:, None]).reshape(2, -1).sum(1)
    assert sums.dtype == lengths.dtype == torch.float32
    assert sums.tolist() == pytest.approx(exact.tolist(), rel=1e-6, abs=1e-3)


def test_a_gradient_reaches_bf16_logits():
    logits = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    logps_of(logits[:1], torch.tensor([1])).sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.float().tolist() == [[-0.25, 0.75, -0.25, -0.25], [0, 0, 0, 0]]


def test_lengths_beyond_what_bf16_counts_are_exact():
    values = logps_of(torch.zeros(701, 4, dtype=torch.bfloat16), torch.zeros(701).long())
    assert reduce_by_sequence(TokenLogps(values, torch.zeros(701).long()), 1).lengths.tolist() == [701]


# Models


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    made = {"llama": tiny_models.make_llama, "gpt2": tiny_models.make_gpt2}[request.param]()
    assert install(made) == ""
    return made


def naive(model, prompt, said):
    """The sum over the answer's tokens from one unpadded call with nothing but ids."""
    ids = torch.tensor([[*prompt, *said.ids]])
    logps = model(input_ids=ids).logits.double().log_softmax(-1)[0]
    return sum(float(logps[at - 1, ids[0, at]]) for at in range(len(prompt), ids.shape[1]) if at)


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("kind", [Padded, Packed, SharedPrefix, PackedSharedPrefix])
def test_no_layout_and_no_padding_changes_a_logp(model, kind, multiple):
    with torch.no_grad():
        expected = [naive(model, row.prompt_ids, row.answers[k]) for k in (0, 1) for row in PAIRS]
        for options in [{}, {"side": "left"}] if kind is Padded else [{}]:
            logps = score(model, kind(multiple, **options).collate(PAIRS, [0, 1, 2]))
            assert logps.sums.tolist() == pytest.approx(expected, abs=2e-4)
            assert logps.lengths.tolist() == [3, 2, 3, 2, 7, 4]


def test_no_scored_token_at_all_is_finite(model, layout):
    batch = layout.collate([pair([5, 6], answer(7, scored=[False]), answer(8, scored=[False]))], [0])
    for head in (None, find_head(model)):
        model.zero_grad()
        logps = score(model, batch, head)
        losses = IPOLoss()(PairLogps.of(logps, logps)).losses
        losses.sum().backward()
        assert logps.sums.tolist() == [0, 0]
        assert torch.isfinite(losses).all()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_gradient(model, side):
    grads = []
    for collator in (Padded(), Padded(64, side)):
        model.zero_grad()
        score(model, collator.collate(PAIRS, [0, 1, 2])).sums.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.isfinite(grads[1]).all()
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wide", [Padded(16, "left"), Packed(64), SharedPrefix(16), PackedSharedPrefix(64)])
def test_what_stands_in_the_padding_does_not_matter(model, wide):
    batch = wide.collate(PAIRS, [0, 1, 2])
    assert not batch.mask.all()
    other = batch._replace(input_ids=torch.where(batch.mask, batch.input_ids, 77))
    with torch.no_grad():
        assert torch.allclose(score(model, batch).sums, score(model, other).sums, atol=1e-5)


def test_the_model_is_told_what_is_padding(model):
    told = {}
    handle = model.register_forward_pre_hook(lambda _, __, given: told.update(given), with_kwargs=True)
    batch = Padded(8, "left").collate(PAIRS, [0, 1, 2])
    score(model, batch)
    handle.remove()
    assert told["attention_mask"] is batch.mask
    assert told["position_ids"] is batch.position_ids
    assert "trees" not in told


def test_prompts_never_reach_the_output_head(model):
    shapes = []
    row = pair([5] * 50, [6, 7, 0], [8, 0])
    heads = None, find_head(model)
    handle = model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[:-1])))
    for head in heads:
        score(model, Padded().collate([row], [0]), head)
        score(model, PackedSharedPrefix().collate([row], [0]), head)
    handle.remove()
    assert shapes == [(2, 3), (1, 4), (5,), (5,)]  # whole: columns with a scored token; in two parts: a row for each


def test_demonstrations_are_scored_by_turn(model, layout):
    rows = [EncodedSFT(ORIGIN, [11, 12], (answer(14, 15, 16, 0, scored=[True, False, False, True]),))] * 2
    with torch.no_grad():
        logps = score(model, layout.collate(rows, [0, 1]))
        table = model(input_ids=torch.tensor([[11, 12, 14, 15, 16, 0]])).logits.log_softmax(-1)[0]
    assert isinstance(logps, SequenceLogps)
    assert logps.sums.tolist() == pytest.approx([float(table[1, 14] + table[4, 0])] * 2, abs=1e-4)
    assert logps.lengths.tolist() == [2, 2]


def test_a_wrong_shape_is_caught_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        logps_of(torch.zeros(2, 4), torch.zeros(3).long())
    with pytest.raises(jaxtyping.TypeCheckError):
        logps_of(torch.zeros(2, 3, 4), torch.zeros(2, 3).long())
    with pytest.raises(jaxtyping.TypeCheckError):
        _ = PairLogps(*torch.zeros(6, 3, 1)).margins
