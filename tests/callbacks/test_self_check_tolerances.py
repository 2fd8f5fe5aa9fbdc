"""How near a start has to be: just inside each of the self-check's tolerances it passes, outside it does not."""

import math

import pytest
import torch
from support.loss_cases import pairs

from dpo_lightning.callbacks.self_check import SelfCheck
from dpo_lightning.losses import DPOLoss, IPOLoss

FLOAT32, HALF = 1e-5, 0.03
"""How near a precomputed reference is, as a part of an answer's log-probability and its number of tokens."""


def problems(off=0.0, apart=0.0, loss=None, nearness=0.0):
    """What is found where a loss is `off` its start, and a chosen answer of -50 nats and 10 tokens is `apart`."""
    loss = DPOLoss() if loss is None else loss
    logps = pairs(([-50.0], [-20.0]), ([-50.0], [-20.0]), ([10.0], [4.0]))
    output = loss(logps)
    moved = logps._replace(reference_chosen=logps.reference_chosen - apart)
    found = SelfCheck.check_start(output._replace(losses=output.losses + off), moved, loss, nearness)
    return [str(problem) for problem in found]


@pytest.mark.parametrize(
    ("loss", "nearness", "inside", "outside"),
    [
        (DPOLoss(), 0.0, 5e-7, 2e-6),
        (IPOLoss(), 0.0, 2e-5, 4e-5),  # begins at 25: as far off in its own size
        (DPOLoss(), FLOAT32, 5e-5, 2e-4),
        (IPOLoss(), FLOAT32, 2e-3, 4e-3),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_loss_begins_within_a_millionth_or_by_a_file_a_ten_thousandth(loss, nearness, inside, outside, sign):
    assert problems(sign * inside, loss=loss, nearness=nearness) == []
    (told,) = problems(sign * outside, loss=loss, nearness=nearness)
    assert "the starting loss is" in told


def test_a_loss_of_half_precision_by_a_file_is_not_compared():
    """Log-probabilities of other batches move it too far; one that is no number is still refused."""
    assert problems(0.5, nearness=HALF) == []
    assert "the starting loss is nan" in problems(math.nan, nearness=HALF)[0]


@pytest.mark.parametrize(("nearness", "inside", "outside"), [(FLOAT32, 5e-4, 7e-4), (HALF, 1.7, 1.9)])
@pytest.mark.parametrize("sign", [1, -1])
def test_log_probabilities_of_a_file_are_near_by_sum_and_length(nearness, inside, outside, sign):
    """50 nats and 10 tokens: 60 times the nearness."""
    assert problems(apart=sign * inside, nearness=nearness) == []
    (told,) = problems(apart=sign * outside, nearness=nearness)
    assert f"log-probabilities are up to {outside:.3g} nats from the reference's at the start" in told


@pytest.mark.parametrize("size", [1e-30, 1e-7, math.nan])
def test_a_live_reference_leaves_no_margin_at_all(size):
    logps = pairs(([-50.0], [-20.0]), ([-50.0], [-20.0]))
    output = DPOLoss()(logps)
    rewards = output.chosen_rewards + torch.tensor([size])
    (problem,) = SelfCheck.check_start(output._replace(chosen_rewards=rewards), logps, DPOLoss())
    assert f"a margin is {size:.3g} before the first step and not 0" in str(problem)
