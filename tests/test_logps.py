"""Log-probabilities by hand, in any layout, and in enough precision."""

import math

import jaxtyping
import pytest
import tiny
import torch

from dpo_lightning.data.collate import Padded
from dpo_lightning.logps import score, sequence_logps
from dpo_lightning.losses import DPOLoss, IPOLoss
from dpo_lightning.types import (
    IGNORE,
    EncodedAnswer,
    EncodedPair,
    EncodedSFT,
    Origin,
    PairLogps,
    SequenceLogps,
)

ORIGIN = Origin("pairs.jsonl", 7)


def answer(*ids, scored=None):
    return EncodedAnswer(ids, [True] * len(ids) if scored is None else scored)


PAIRS = [
    EncodedPair(ORIGIN, [11, 12, 13], answer(14, 15, 0), answer(16, 0)),
    EncodedPair(ORIGIN, [21], answer(22, 0), answer(23, 24, 25, 26, 27, 28, 0)),
    EncodedPair(ORIGIN, [31, 32, 33, 34, 35], answer(36, 0), answer(37, 38, 39, 0)),
]


def reduced(logits, targets, sequence_ids=None, count=None):
    targets = torch.as_tensor(targets)
    if sequence_ids is None:
        sequence_ids = torch.arange(len(targets))[:, None].expand_as(targets)
    return sequence_logps(logits, targets, torch.as_tensor(sequence_ids), count or len(targets))


def token_logits(*logps, vocab=5):
    """Logits of one row whose token 0 has these log-probabilities."""
    rest = [math.log(-math.expm1(logp) / (vocab - 1)) for logp in logps]
    return torch.tensor([[[logp] + [other] * (vocab - 1) for logp, other in zip(logps, rest, strict=True)]])


def test_equal_logits_give_minus_n_ln_v():
    sums, lengths = reduced(torch.zeros(2, 3, 16), [[3, 7, IGNORE], [IGNORE, 15, IGNORE]])
    assert sums.tolist() == pytest.approx([-5.545177, -2.772589], abs=1e-6)
    assert lengths.tolist() == [2, 1]


def test_a_target_that_is_certain_costs_nothing_and_its_neighbour_everything():
    batch = Padded().pairs([EncodedPair(ORIGIN, [1, 2], answer(3, 4), answer(4))], [0])
    sure = torch.nn.functional.one_hot(torch.tensor([[2, 3, 4, 0], [2, 4, 0, 0]]), 6).float() * 100
    sums, _ = reduced(sure, batch.targets)  # position t says the token at t + 1
    assert sums.tolist() == pytest.approx([0, 0], abs=1e-6)
    late = torch.nn.functional.one_hot(batch.input_ids, 6).float() * 100
    assert (reduced(late, batch.targets).sums < -99).all()


@pytest.mark.parametrize(
    ("targets", "mean"), [([0, 0, 0, IGNORE], -2.0), ([0, 0, IGNORE, IGNORE], -1.5), ([IGNORE] * 4, 0.0)]
)
def test_known_token_logps_are_summed_where_they_are_scored(targets, mean):
    sums, lengths = reduced(token_logits(-1.0, -2.0, -3.0, -4.0), [targets])
    assert float(sums[0]) / max(1, float(lengths[0])) == pytest.approx(mean, abs=1e-6)


def test_a_sequence_without_a_scored_token_is_zero_and_has_no_gradient():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums, lengths = reduced(logits, [[IGNORE] * 3, [1, IGNORE, IGNORE]])
    assert sums[0] == lengths[0] == 0
    (sums / lengths.clamp(min=1)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0] == 0).all()
    assert (logits.grad[1, 0] != 0).all()


def test_no_scored_token_at_all_is_finite():
    model = tiny.make_llama()
    batch = Padded().pairs([EncodedPair(ORIGIN, [5, 6], answer(7, scored=[False]), answer(8, scored=[False]))], [0])
    logps = score(model, batch)
    losses = IPOLoss()(PairLogps.of(logps, logps)).losses
    losses.sum().backward()
    assert logps.sums.tolist() == [0, 0]
    assert torch.isfinite(losses).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_mean_of_an_answer_without_a_prompt_divides_by_what_was_scored():
    batch = Padded().pairs([EncodedPair(ORIGIN, [], answer(1, 2, 3), answer(4, 5))], [0])
    sums, lengths = reduced(torch.zeros(*batch.targets.shape, 8), batch.targets)
    assert lengths.tolist() == [2, 1]
    assert (sums / lengths).tolist() == pytest.approx([-math.log(8)] * 2)


def test_sums_are_reduced_by_sequence_and_not_by_row():
    targets, owners = [[0, 0, IGNORE, 0], [0, IGNORE, 0, 0]], [[2, 2, 2, 0], [0, 0, 1, 1]]
    logits = torch.cat([token_logits(-1.0, -2.0, -3.0, -4.0), token_logits(-5.0, -6.0, -7.0, -8.0)])
    sums, lengths = reduced(logits, targets, owners, 4)
    assert sums.tolist() == pytest.approx([-9.0, -15.0, -3.0, 0.0], abs=1e-5)
    assert lengths.tolist() == [2, 2, 2, 0]


def test_bf16_logits_lose_nothing_in_the_sum():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 500, 300, generator=generator) * 4).bfloat16()
    targets = torch.randint(0, 300, (2, 500), generator=generator)
    sums, lengths = reduced(logits, targets)
    exact = logits.double().log_softmax(-1).gather(-1, targets[..., None]).sum(dim=(1, 2))
    assert sums.dtype == lengths.dtype == torch.float32
    assert sums.tolist() == pytest.approx(exact.tolist(), rel=1e-6, abs=1e-3)


def test_a_gradient_reaches_bf16_logits():
    logits = torch.zeros(1, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    reduced(logits, [[1, IGNORE]]).sums.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad[0].float().tolist() == [[-0.25, 0.75, -0.25, -0.25], [0, 0, 0, 0]]


def test_lengths_beyond_what_bf16_counts_are_exact():
    _, lengths = reduced(torch.zeros(1, 701, 4, dtype=torch.bfloat16), torch.zeros(1, 701).long())
    assert lengths.tolist() == [701]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return {"llama": tiny.make_llama, "gpt2": tiny.make_gpt2}[request.param]()


def naive(model, prompt, said):
    """The sum over the answer's tokens from one unpadded call with nothing but ids."""
    ids = torch.tensor([[*prompt, *said.ids]])
    logps = model(input_ids=ids).logits.double().log_softmax(-1)[0]
    return sum(float(logps[at - 1, ids[0, at]]) for at in range(len(prompt), ids.shape[1]) if at)


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_any_side_and_width_changes_no_logp(model, side, multiple):
    with torch.no_grad():
        logps = score(model, Padded(multiple, side).pairs(PAIRS, [0, 1, 2]))
        expected = [naive(model, pair.prompt_ids, pair.answers[k]) for k in (0, 1) for pair in PAIRS]
    assert logps.sums.tolist() == pytest.approx(expected, abs=2e-4)
    assert logps.lengths.tolist() == [3, 2, 2, 2, 7, 4]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_pair_scores_the_same_alone_and_in_company(model, side):
    with torch.no_grad():
        together = score(model, Padded(1, side).pairs(PAIRS, [0, 1, 2]))
        for k, pair in enumerate(PAIRS):
            alone = score(model, Padded(1, side).pairs([pair], [k]))
            assert alone.sums.tolist() == pytest.approx(together.sums[[k, 3 + k]].tolist(), abs=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_gradient(model, side):
    grads = []
    for collator in (Padded(), Padded(64, side)):
        model.zero_grad()
        score(model, collator.pairs(PAIRS, [0, 1, 2])).sums.sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.isfinite(grads[1]).all()
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-3)


def test_what_stands_in_the_padding_does_not_matter(model):
    batch = Padded(16, "left").pairs(PAIRS, [0, 1, 2])
    other = batch._replace(input_ids=torch.where(batch.mask, batch.input_ids, 77))
    with torch.no_grad():
        assert torch.allclose(score(model, batch).sums, score(model, other).sums, atol=1e-5)


def test_the_model_is_told_what_is_padding(model):
    told = {}
    handle = model.register_forward_pre_hook(lambda _, __, given: told.update(given), with_kwargs=True)
    batch = Padded(8, "left").pairs(PAIRS, [0, 1, 2])
    score(model, batch)
    handle.remove()
    assert told["attention_mask"] is batch.mask
    assert told["position_ids"] is batch.position_ids


def rescored(pair):
    """The same tokens with the prompt scored as well."""
    answers = [
        EncodedAnswer([*pair.prompt_ids, *a.ids], [True] * (len(pair.prompt_ids) + len(a.ids))) for a in pair.answers
    ]
    return EncodedPair(ORIGIN, [], *answers)


def test_scoring_the_shared_prompt_cancels_in_dpo_and_not_in_a_mean_per_token(model):
    with torch.no_grad():
        reference = tiny.make_llama(seed=1)
        both = []
        for pairs in (PAIRS, [rescored(pair) for pair in PAIRS]):
            batch = Padded().pairs(pairs, [0, 1, 2])
            both.append(PairLogps.of(score(model, batch), score(reference, batch)))
    assert torch.allclose(DPOLoss()(both[0]).losses, DPOLoss()(both[1]).losses, atol=1e-4)
    assert not torch.allclose(IPOLoss()(both[0]).losses, IPOLoss()(both[1]).losses, atol=1e-2)


def test_prompts_never_reach_the_output_head(model):
    widths = []
    handle = model.lm_head.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    score(model, Padded().pairs([EncodedPair(ORIGIN, [5] * 50, answer(6, 7, 0), answer(8, 0))], [0]))
    handle.remove()
    assert widths == [3]


def test_demonstrations_are_scored_by_turn(model):
    said = answer(14, 15, 16, 0, scored=[True, False, False, True])
    with torch.no_grad():
        logps = score(model, Padded().demonstrations([EncodedSFT(ORIGIN, [11, 12], said)], [0]))
        table = model(input_ids=torch.tensor([[11, 12, 14, 15, 16, 0]])).logits.log_softmax(-1)[0]
    assert isinstance(logps, SequenceLogps)
    assert float(logps.sums[0]) == pytest.approx(float(table[1, 14] + table[4, 0]), abs=1e-4)
    assert logps.lengths.tolist() == [2]


def test_a_wrong_shape_is_caught_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        sequence_logps(torch.zeros(2, 3, 4), torch.zeros(2, 2).long(), torch.zeros(2, 3).long(), 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        _ = PairLogps(*torch.zeros(6, 3, 1)).margins
