"""The Plackett-Luce loss: a case by hand, DPO's own at two answers, safe numbers, and what padding must not change."""

import itertools
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies
from support.loss_cases import pairs

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import DPOLoss, PlackettLuceLoss
from dpo_lightning.metrics import ranked_rewards
from dpo_lightning.types import RankedLogps, RankedOutput

NUMBERS = strategies.floats(-40, 40)
LISTS = strategies.lists(strategies.lists(NUMBERS, min_size=2, max_size=5), min_size=1, max_size=4)


def lists(ratios, policy=None, dtype=torch.float64):
    """Ragged lists of log-ratios, of a policy that gives every answer -7 or what is said."""
    most = max(map(len, ratios))
    padded = torch.tensor([[*row, *[0.0] * (most - len(row))] for row in ratios], dtype=dtype)
    mask = torch.tensor([[True] * len(row) + [False] * (most - len(row)) for row in ratios])
    policy = torch.where(mask, torch.full_like(padded, -7.0), 0) if policy is None else policy
    return RankedLogps(policy, policy - padded, mask.to(dtype), mask)


def plain(ratios, beta):
    """The formula as the paper has it, a product of ratios of exponentials."""
    s = [math.exp(beta * value) for value in ratios]
    return -math.log(math.prod(s[j] / sum(s[j:]) for j in range(len(s))))


def test_three_answers_by_hand():
    """Odds 4 : 2 : 1 of being best: 4/7 for the first place, 2/3 for the second."""
    ratios = [math.log(4), math.log(2), 0.0]
    output = PlackettLuceLoss(1.0)(lists([ratios]))
    assert output.losses.item() == pytest.approx(-math.log(4 / 7 * 2 / 3), abs=1e-12)
    assert output.losses.item() == pytest.approx(0.965081, abs=1e-6)
    assert output.rewards.tolist() == [pytest.approx(ratios)]
    turned = PlackettLuceLoss(1.0)(lists([ratios[::-1]])).losses.item()
    assert turned == pytest.approx(-math.log(1 / 7 * 2 / 6), abs=1e-12)


def test_the_gradient_of_three_answers_by_hand():
    """Each place takes the share of the answers that are left: softmax minus what was drawn."""
    ratios = torch.tensor([[math.log(4), math.log(2), 0.0]], dtype=torch.float64, requires_grad=True)
    logps = RankedLogps(ratios, torch.zeros_like(ratios), ratios.detach(), torch.ones(1, 3, dtype=torch.bool))
    PlackettLuceLoss(1.0)(logps).losses.sum().backward()
    expected = [4 / 7 - 1, 2 / 7 + 2 / 3 - 1, 1 / 7 + 1 / 3]
    assert ratios.grad.tolist() == [pytest.approx(expected, abs=1e-12)]


@hypothesis.given(LISTS, strategies.floats(0.01, 2))
def test_lists_of_any_lengths_have_the_papers_loss(ratios, beta):
    losses = PlackettLuceLoss(beta)(lists(ratios)).losses
    assert losses.tolist() == pytest.approx([plain(row, beta) for row in ratios], rel=1e-9, abs=1e-9)


@hypothesis.given(strategies.lists(strategies.tuples(*[NUMBERS] * 4), min_size=1, max_size=5), NUMBERS)
def test_two_answers_are_a_pair_of_dpo_to_the_bit(rows, shift):
    """Losses, rewards and gradients, in float32."""
    found = []
    for kind in ("pairs", "lists"):
        policy = torch.tensor([row[:2] for row in rows], requires_grad=True)
        reference = torch.tensor([row[2:] for row in rows]) + shift
        if kind == "pairs":
            output = DPOLoss(0.3)(pairs(policy.T, reference.T, dtype=torch.float32))
            rewards = torch.stack([output.chosen_rewards, output.rejected_rewards], 1)
        else:
            mask = torch.ones_like(policy, dtype=torch.bool)
            output = PlackettLuceLoss(0.3)(RankedLogps(policy, reference, torch.ones_like(policy), mask))
            rewards = output.rewards
        output.losses.mean().backward()
        found.append((output.losses.tolist(), rewards.tolist(), policy.grad.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_it_begins_at_the_log_of_all_orders(count):
    """And where all answers have moved by the same: ln k!."""
    losses = PlackettLuceLoss()(lists([[0.0] * count, [31.5] * count])).losses
    assert losses.tolist() == pytest.approx([math.lgamma(count + 1)] * 2, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratios", [[1e3, 0, -1e3], [-1e3, 0, 1e3], [1e3] * 3, [-1e3, 1e3, -1e3, 1e3]])
def test_losses_and_gradients_are_finite(ratios, dtype):
    """Also beside a list that is longer, and with a beta that makes the most of it."""
    for beta in (0.1, 5.0):
        logps = lists([ratios, [0.0] * 6], dtype=dtype)
        policy = logps.policy.clone().requires_grad_()
        losses = PlackettLuceLoss(beta)(logps._replace(policy=policy)).losses
        losses.sum().backward()
        assert losses.isfinite().all()
        assert policy.grad.isfinite().all()
        steps = [beta * max(0.0, max(ratios[j + 1 :]) - ratios[j]) for j in range(len(ratios) - 1)]
        assert losses[0].item() == pytest.approx(sum(steps), rel=1e-4, abs=2.0)


def test_what_stands_behind_a_shorter_list_changes_nothing():
    """Numbers in the padding neither reach a loss nor get a gradient, and a list alone is the same."""
    logps = lists([[1.0, 2.0], [0.5, -3.0, 4.0]])
    policy = logps.policy.masked_fill(~logps.mask, 55.0).requires_grad_()
    losses = PlackettLuceLoss(0.7)(logps._replace(policy=policy)).losses
    alone = PlackettLuceLoss(0.7)(lists([[1.0, 2.0]])).losses
    assert losses[0].item() == alone.item()
    losses.sum().backward()
    assert policy.grad[0, 2] == 0
    assert (policy.grad[logps.mask] != 0).all()


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_a_beta_without_meaning_is_refused(beta):
    with pytest.raises(UserError, match=r"model\.loss\.beta") as told:
        PlackettLuceLoss(beta)
    assert told.value.code == ExitCode.CONFIG


def test_measures_by_hand():
    """A list of four with one pair the wrong way round and one tie, and a pair that is the wrong way round."""
    rewards = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.5, 2.5, 0.0, 0.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    found = ranked_rewards(RankedOutput(torch.zeros(2), rewards, mask))
    assert {name: values.tolist() for name, values in found.items()} == {
        "rewards/best": [3.0, 0.5],
        "rewards/worst": [1.0, 2.5],
        "rewards/margins": [2.0, -2.0],
        "rewards/accuracies": [pytest.approx(4 / 6), 0.0],
        "rewards/ties": [pytest.approx(1 / 6), 0.0],
    }


LONG = [
    [5.0, 5.0, 3.0, 3.0, 3.0],  # ties of two and of three: 1 + 3 of 10 pairs, the other 6 in order
    [2.0, 1.0, 2.0, 1.0, 2.0, 1.0],  # three and three: 3 + 3 of 15; 3 + 2 + 1 in order
    [0.5] * 7,  # all 21
    [7.0, 6.0, 5.0, 4.0, 3.0],  # none
    [1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 0.0, 0.0],  # four and two: 6 + 1 of 28; six answers ahead of two
    [4.0, 4.0],
]


def test_ties_are_a_share_of_a_lists_pairs():
    """Lists of up to eight answers, with several groups of ties; they have far more pairs than answers."""
    mask = torch.tensor([[rank < len(row) for rank in range(8)] for row in LONG])
    rewards = torch.tensor([row + [0.0] * (8 - len(row)) for row in LONG])
    found = ranked_rewards(RankedOutput(torch.zeros(len(LONG)), rewards, mask))
    by_hand = [4 / 10, 6 / 15, 1.0, 0.0, 7 / 28, 1.0]
    ahead = [6 / 10, 6 / 15, 0.0, 1.0, 12 / 28, 0.0]
    assert found["rewards/ties"].tolist() == pytest.approx(by_hand, abs=1e-7)
    assert found["rewards/accuracies"].tolist() == pytest.approx(ahead, abs=1e-7)
    for row, tie in zip(LONG, by_hand, strict=True):
        equal = [one == other for one, other in itertools.combinations(row, 2)]
        assert sum(equal) / len(equal) == pytest.approx(tie)


@hypothesis.given(strategies.lists(strategies.lists(strategies.integers(0, 3), min_size=2, max_size=9), min_size=1))
def test_measures_of_lists_with_ties_counted_pair_by_pair(rows):
    """Few different rewards, so that ties are many."""
    most = max(map(len, rows))
    mask = torch.tensor([[rank < len(row) for rank in range(most)] for row in rows])
    rewards = torch.tensor([row + [0] * (most - len(row)) for row in rows]).float()
    found = ranked_rewards(RankedOutput(torch.zeros(len(rows)), rewards, mask))
    for k, row in enumerate(rows):
        both = list(itertools.combinations(row, 2))
        assert float(found["rewards/ties"][k]) == pytest.approx(sum(a == b for a, b in both) / len(both))
        assert float(found["rewards/accuracies"][k]) == pytest.approx(sum(a > b for a, b in both) / len(both))
        assert float(found["rewards/margins"][k]) == row[0] - row[-1]
