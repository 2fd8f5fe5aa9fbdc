"""The mean that some losses keep over a run, by hand: all steps alike, or old ones fading."""

import math

import pytest
import torch
from support.loss_cases import pairs

from dpo_lightning.losses import BCOLoss, BCOPairLoss, BetaDPOLoss, DPOLoss, WeightedSum, WPOLoss
from dpo_lightning.losses.running_mean import RunningMean
from dpo_lightning.types import UnpairedLogps


def stepped(mean, *batches, others=(0.0, 0.0)):
    """The value after an optimizer step of these micro-batches of values and weights, and of another rank's sums."""
    for values, weights in batches:
        mean.add(torch.tensor(values), torch.tensor(weights))
    mean.step(lambda own: own + torch.tensor(others, dtype=torch.float64) if any(others) else own)
    return float(mean.value)


def test_all_values_count_the_same():
    """1 and 3; then 10 twice as much; then 6 four times and 0 twice."""
    mean = RunningMean()
    assert stepped(mean, ([1.0, 3.0], [1.0, 1.0])) == 2
    assert stepped(mean, ([10.0], [2.0])) == 6
    assert stepped(mean, ([6.0, 0.0], [4.0, 2.0])) == pytest.approx((4 + 20 + 24) / 10)
    assert float(mean.weight) == 10


def test_old_steps_fade():
    """From 0 a quarter of the way to 8, then a quarter of the way to -2."""
    mean = RunningMean(momentum=0.75)
    assert stepped(mean, ([8.0], [5.0])) == 2
    assert stepped(mean, ([-2.0, -2.0], [1.0, 3.0])) == 1
    assert stepped(RunningMean(momentum=0.0), ([8.0], [5.0])) == 8


@pytest.mark.parametrize("momentum", [None, 0.75])
def test_a_step_without_weight_moves_nothing(momentum):
    """At the start as well as later, whatever the fillers' values are."""
    mean = RunningMean(momentum)
    for _ in range(2):
        before, weight = float(mean.value), float(mean.weight)
        assert stepped(mean) == before
        assert stepped(mean, ([math.nan, 1e9], [0.0, 0.0])) == before
        assert float(mean.weight) == weight
        stepped(mean, ([8.0], [1.0]))
    assert float(mean.value) != 0


@pytest.mark.parametrize("momentum", [None, 0.75])
def test_micro_batches_and_ranks_are_one_batch(momentum):
    """What was added counts from the step on, once."""
    mean = RunningMean(momentum)
    mean.add(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 2.0]))
    assert float(mean.value) == 0
    whole = stepped(mean)
    cut = stepped(RunningMean(momentum), ([1.0], [1.0]), ([2.0], [0.5]), ([4.0], [2.0]))
    ranks = stepped(RunningMean(momentum), ([1.0, 2.0], [1.0, 0.5]), others=(8.0, 2.0))
    assert whole == cut == ranks == pytest.approx((1 + 1 + 8) / 3.5 * (1 if momentum is None else 0.25))


def test_what_was_counted_is_kept_exactly():
    """Half-precision weights round neither buffer, and a checkpoint holds both and no more."""
    mean = RunningMean().half()
    assert (mean.value.dtype, mean.weight.dtype) == (torch.float32, torch.float64)
    stepped(mean, ([1 / 3], [3.0]))
    assert float(mean.value) == pytest.approx(1 / 3, rel=1e-7)
    state = mean.state_dict()
    assert state.keys() == {"value", "weight"}
    again = RunningMean()
    again.load_state_dict(state)
    assert stepped(again, ([1.0], [1.0])) == stepped(mean, ([1.0], [1.0])) == pytest.approx(0.5)


def test_what_each_loss_takes_the_mean_of():
    """Beta-DPO of margins, BCO of both rewards, by the pairs' weights; a part of a sum, of its own rewards."""
    logps = pairs(([4.0, -1.0], [1.0, 3.0]), ([0.0, 0.0], [0.0, 0.0]))._replace(
        weights=torch.tensor([1.0, 3.0]).double()
    )
    margins = 0.5 * (1 * 3 + 3 * -4) / 4
    rewards = 0.5 * (1 * 2.5 + 3 * 1.0) / 4
    for kind, mean in (
        (lambda: BetaDPOLoss(0.5, momentum=0.0), margins),
        (lambda: BCOPairLoss(0.5), rewards),
        (lambda: WPOLoss(BCOPairLoss(0.5)), rewards),
    ):
        for wrapped in (lambda loss: loss, lambda loss: WeightedSum([DPOLoss(0.1), loss], [1.0, 7.0])):
            loss = kind()
            whole = wrapped(loss)
            whole.observe(whole(logps), logps)
            assert float(loss.state.value) == 0
            assert stepped(loss.state) == pytest.approx(mean)
    unpaired = UnpairedLogps(
        logps.policy_chosen, logps.reference_chosen, logps.chosen_lengths, torch.tensor([True, False])
    )
    loss = BCOLoss(0.5)
    loss.observe(loss(unpaired), unpaired)
    assert stepped(loss.state) == pytest.approx(0.5 * (4 - 1) / 2)
