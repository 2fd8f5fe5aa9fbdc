"""Metrics are means over pairs: of any batch size, without fillers, and by the loss's own score."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, KTOLoss
from dpo_lightning.metrics import Means, preference_accuracy, reward_margins, unpaired_rewards
from dpo_lightning.types import PairLogps, UnpairedLogps

TORCHTUNE = PairLogps(
    policy_chosen=torch.tensor([-0.5, -10.0, -1.0]),
    policy_rejected=torch.tensor([-0.1, -30.0, -21.0]),
    reference_chosen=torch.tensor([-0.5, -10.1, -0.1]),
    reference_rejected=torch.tensor([-0.1, -20.1, -0.1]),
    chosen_lengths=torch.tensor([1.0, 2.0, 4.0]),
    rejected_lengths=torch.tensor([2.0, 5.0, 3.0]),
)


def per_pair(loss, logps):
    """Everything that callbacks average, per pair."""
    output = loss(logps)
    return {"loss": output.losses, **reward_margins(output, logps), **preference_accuracy(output, logps)}


def mean_of(values, sizes, weights=None):
    """The means after updates with batches of these sizes."""
    count = len(next(iter(values.values())))
    weights = torch.ones(count) if weights is None else weights
    means = Means(tuple(values))
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        means.update({name: value[part] for name, value in values.items()}, weights[part])
        start += size
    assert start == count
    return {name: float(value) for name, value in means.compute().items()}


def test_trls_metrics_of_torchtunes_pairs():
    """TRL 1.16 on the pairs of torchtune's unit test, beta 0.1: its accuracy counts the tie as wrong."""
    means = mean_of(per_pair(DPOLoss(beta=0.1), TORCHTUNE), [3])
    expected = {
        "loss": 0.377779,
        "rewards/chosen": -0.026667,
        "rewards/rejected": -1.026667,
        "rewards/margins": 1.0,
        "rewards/accuracies": 0.666667,
        "rewards/ties": 0.333333,
        "logps/chosen": -3.833333,
        "logps/rejected": -17.033333,
        "logps/margins": 10.0,
        "logps/accuracies": 0.666667,
        "logps/ref_accuracies": 0.333333,
    }
    assert means.keys() == expected.keys()
    for name, value in expected.items():
        assert means[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1], [1, 2], [3]])
def test_a_short_last_batch_weighs_what_it_holds(sizes):
    """OpenRLHF #1336: two right, one wrong; the mean of batch means said 0.5 and 1.2201 at batch size 2."""
    h = torch.tensor([1.0, 1.0, -2.0])
    zero, one = torch.zeros(3), torch.ones(3)
    means = mean_of(per_pair(DPOLoss(beta=1.0), PairLogps(h, zero, zero, zero, one, one)), sizes)
    assert means["rewards/accuracies"] == pytest.approx(0.6667, abs=5e-5)
    assert means["loss"] == pytest.approx(0.9178, abs=5e-5)


@given(st.data())
def test_any_batches_give_the_same_means(data):
    """Random values, weights and cuts: one exact weighted mean."""
    count = data.draw(st.integers(1, 9))
    numbers = st.lists(st.floats(-1e4, 1e4, width=32), min_size=count, max_size=count)
    x = torch.tensor(data.draw(numbers))
    weights = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))).float()
    if not weights.any():
        weights[0] = 1
    cuts = sorted(data.draw(st.sets(st.integers(1, count))) | {0, count})
    sizes = [after - before for before, after in pairwise(cuts)]
    expected = math.fsum((x * weights.double()).tolist()) / float(weights.sum())
    assert mean_of({"x": x}, sizes, weights)["x"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("value", [1e9, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sizes", [[3], [1, 1, 1], [2, 1]])
def test_fillers_do_not_count(value, sizes):
    """An item of weight 0 is left out, even where its value is no number."""
    x = torch.tensor([1.0, value, 4.0])
    assert mean_of({"x": x}, sizes, torch.tensor([True, False, True])) == {"x": 2.5}


def test_a_counted_nan_is_shown():
    """What counts and is no number must not be swallowed."""
    assert math.isnan(mean_of({"x": torch.tensor([1.0, math.nan])}, [2])["x"])


def test_nothing_added_has_no_mean_and_is_no_error():
    """It would be a NaN, which ends a run."""
    means = Means(("x",))
    means.update({"x": torch.tensor([3.0])}, torch.tensor([0.0]))
    assert means.compute() == {}


def test_weights_may_differ_by_name():
    means = Means(("x", "y", "z"))
    for value, weights in ((1.0, (2.0, 1.0, 0.0)), (4.0, (1.0, 1.0, 0.0))):
        each = {name: torch.tensor([weight]) for name, weight in zip("xyz", weights, strict=True)}
        means.update(dict.fromkeys("xyz", torch.tensor([value])), each)
    assert means.compute() == {"x": 2.0, "y": 2.5}


@pytest.mark.parametrize("weight", [1e-6, 0.25, 1.0])
def test_little_weight_is_still_a_mean(weight):
    means = Means(("x",))
    means.update({"x": torch.tensor([3.0, 9.0])}, torch.tensor([weight, 0.0]))
    assert means.compute() == {"x": 3.0}


def test_a_reset_forgets():
    means = Means(("x",))
    means.update({"x": torch.tensor([100.0])}, torch.ones(1))
    means.compute()
    means.reset()
    means.update({"x": torch.tensor([3.0])}, torch.ones(1))
    assert float(means.compute()["x"]) == 3.0


def test_many_pairs_lose_no_digits():
    """Sums are float64: in float32, 16,777,216 and 1 would be 16,777,216."""
    means = Means(("x",))
    for count in (2**24, 1, 1, 1):
        means.update({"x": torch.ones(1)}, torch.tensor([float(count)]))
    assert float(means.weights) == float(means.sums) == 2**24 + 3


def test_a_tie_is_no_win_and_is_told():
    """Equal answers keep h at 0 for ever: accuracy 0 alone would read as always wrong."""
    x = torch.tensor([-3.0, -4.0])
    same = PairLogps(x, x, x - 1, x - 1, torch.ones(2), torch.ones(2))
    means = mean_of(per_pair(DPOLoss(), same), [2])
    assert means["loss"] == pytest.approx(math.log(2))
    assert (means["rewards/accuracies"], means["rewards/ties"]) == (0, 1)
    assert means["logps/accuracies"] == means["logps/ref_accuracies"] == 0


SUM_WINS = PairLogps(  # log-ratios 2 and 1; over 10 and 2 tokens their means are 0.2 and 0.5
    *[torch.tensor([x]) for x in (-8.0, -5.0, -10.0, -6.0, 10.0, 2.0)]
)


@pytest.mark.parametrize(
    ("loss", "won"),
    [(DPOLoss(), 1), (HingeLoss(), 1), (IPOLoss(normalization="sum"), 1), (IPOLoss(normalization="mean"), 0)],
)
def test_a_win_is_by_the_losss_own_score(loss, won):
    """Where sum and mean disagree, IPO by the mean counts what it trains; TRL counts the sum."""
    values = per_pair(loss, SUM_WINS)
    assert float(values["rewards/accuracies"]) == won
    assert (float(values["rewards/margins"]) > 0) == won


def test_rewards_scale_with_beta_and_log_ratios_do_not():
    """So that runs of different beta can be compared by `logps/margins`."""
    small, large = (per_pair(DPOLoss(beta), TORCHTUNE) for beta in (0.1, 1.0))
    assert torch.allclose(large["rewards/margins"], 10 * small["rewards/margins"])
    assert torch.equal(large["logps/margins"], small["logps/margins"])
    assert torch.equal(large["rewards/accuracies"], small["rewards/accuracies"])


@pytest.mark.parametrize(("estimate", "told"), [(0.75, 0.75), (0.0, 0.0), (-0.75, 0.0), (-20.0, 0.0)])
def test_the_divergence_of_unpaired_rows_is_the_one_that_is_trained(estimate, told):
    """`max(0, estimate)`, for every answer alike: the loss of answers at a log-ratio of 0 tells which one it took."""
    zero = torch.zeros(3)
    logps = UnpairedLogps(zero, zero, zero + 1, torch.tensor([True, True, False]), kl=torch.tensor(estimate))
    output = KTOLoss(2.0)(logps)
    values = unpaired_rewards(output, logps)
    assert values["kl"].tolist() == [told] * 3
    taken = 1 / (1 + math.exp(-2.0 * told))
    assert output.losses.tolist() == pytest.approx([taken, taken, 1 - taken])


def test_a_loss_that_measures_no_divergence_has_none():
    zero = torch.zeros(2)
    logps = UnpairedLogps(zero - 3, zero, zero + 1, torch.tensor([True, False]))
    values = unpaired_rewards(KTOLoss()(logps._replace(kl=torch.tensor(0.0))), logps)
    assert values["kl"].tolist() == [0, 0]
    assert values["desirable"].tolist() == [1, 0]
    assert values["logps/chosen"].tolist() == values["logps/rejected"].tolist() == [-3, -3]
    assert values["rewards/chosen"].tolist() == pytest.approx([-0.3, -0.3])
