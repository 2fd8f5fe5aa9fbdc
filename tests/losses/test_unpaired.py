"""The losses of unpaired rows against published numbers, at their start, and far away from it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import APOZeroLoss, APOZeroUnpairedLoss, BCOLoss, BCOPairLoss, KTOLoss
from dpo_lightning.types import PairLogps, UnpairedLogps

SIX = {"abs": 1e-6, "rel": 0}
CHOSEN, REJECTED = (0.0, 0.1, -0.9), (0.0, -9.9, -20.9)
"""Log-ratios of torchtune's pairs."""
FAMILY = {"kto": KTOLoss, "apo": APOZeroUnpairedLoss, "bco": BCOLoss}
RATIOS = st.lists(st.floats(-30, 30), min_size=1, max_size=8)


def unpaired(ratios, good, kl=None, dtype=torch.float64, weights=None):
    """Answers of a token each, whose reference gives them 0."""
    policy = torch.as_tensor(ratios, dtype=dtype)
    verdicts = torch.as_tensor(good).expand(len(policy)) if isinstance(good, bool) else torch.tensor(good)
    return UnpairedLogps(
        policy,
        torch.zeros_like(policy),
        torch.ones_like(policy),
        verdicts,
        weights,
        None if kl is None else torch.as_tensor(kl, dtype=dtype),
    )


@pytest.mark.parametrize(
    ("good", "ratios", "each"),
    [(True, CHOSEN, [0.512497, 0.509999, 0.534943]), (False, REJECTED, [0.487503, 0.261150, 0.105269])],
)
def test_the_check_numbers_of_kto(good, ratios, each):
    """Beta 0.1, z 0.5."""
    assert KTOLoss()(unpaired(ratios, good, 0.5)).losses.tolist() == pytest.approx(each, **SIX)
    weighted = KTOLoss(0.1, 2.0, 3.0)(unpaired(ratios, good, 0.5)).losses.tolist()
    assert weighted == pytest.approx([(2 if good else 3) * value for value in each], abs=3e-6)


def test_kto_by_hand():
    """Each kind by its own formula, at a beta of 0.3."""
    good, bad = KTOLoss(0.3)(unpaired([1.0, 1.0], [True, False], 2.0)).losses.tolist()
    assert good == pytest.approx(1 - 1 / (1 + math.exp(-0.3 * (1 - 2))))
    assert bad == pytest.approx(1 - 1 / (1 + math.exp(-0.3 * (2 - 1))))


def test_a_divergence_is_not_negative():
    """An estimate below 0 counts as 0."""
    logps = unpaired(CHOSEN, True, -3.0)
    none = logps._replace(kl=torch.zeros_like(logps.kl))
    assert torch.equal(KTOLoss()(logps).losses, KTOLoss()(none).losses)


@given(RATIOS, st.booleans())
def test_kto_at_no_divergence_is_apo_zero(ratios, good):
    """And both sum to the loss of a pair."""
    apo = APOZeroUnpairedLoss()(unpaired(ratios, good))
    assert torch.equal(KTOLoss()(unpaired(ratios, good, 0.0)).losses, apo.losses)
    zeros = torch.zeros_like(apo.losses)
    x = torch.tensor(ratios, dtype=torch.float64)
    pair = APOZeroLoss()(PairLogps(x, x, zeros, zeros, zeros + 1, zeros + 1)).losses
    torch.testing.assert_close(apo.losses + APOZeroUnpairedLoss()(unpaired(ratios, not good)).losses, pair)


@given(RATIOS, st.floats(-2, 2))
def test_bco_of_both_answers_is_bco_of_the_pair(ratios, delta):
    alone, paired = BCOLoss(), BCOPairLoss()
    for loss in (alone, paired):
        loss.reward_mean.value = torch.tensor(delta)
    x = torch.tensor(ratios, dtype=torch.float64)
    one = torch.ones_like(x)
    both = [alone(unpaired(ratios, good)).losses for good in (True, False)]
    torch.testing.assert_close(sum(both), paired(PairLogps(x, x, 0 * x, 0 * x, one, one)).losses)


def test_bcos_mean_is_that_of_all_rewards():
    """It moves with the optimizer's step, by weight; a filler's reward is not in it."""
    loss = BCOLoss(0.5)
    logps = unpaired([2.0, 4.0, 1e9], [True, False, True], weights=torch.tensor([1.0, 3.0, 0.0]))
    output = loss(logps)
    assert output.losses[:2].tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(2))])
    loss.observe(output, logps)
    assert float(loss.state.value) == 0
    loss.state.step(lambda value: value)
    assert float(loss.state.value) == pytest.approx((1 * 1 + 3 * 2) / 4)
    assert loss(logps).losses[0].item() == pytest.approx(math.log1p(math.exp(-(1 - 1.75))))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("size", [1e3, -1e3])
@pytest.mark.parametrize("good", [True, False])
def test_far_log_ratios_stay_finite(name, size, good):
    leaf = torch.full((2,), size, requires_grad=True)
    logps = unpaired([0.0, 0.0], good, -size, torch.float32)._replace(policy=leaf)
    output = FAMILY[name]()(logps)
    output.losses.sum().backward()
    assert output.losses.isfinite().all()
    assert leaf.grad.isfinite().all()
    assert not output.rewards.requires_grad


@pytest.mark.parametrize(("name", "value"), [("kto", 0.5), ("apo", 0.5), ("bco", math.log(2))])
def test_starting_values(name, value):
    output = FAMILY[name]()(unpaired([-3.0, 5.0], [True, False], 1.0).at_start())
    assert output.losses.tolist() == pytest.approx([value] * 2, **SIX)
    assert not output.rewards.any()


@pytest.mark.parametrize("cls", [KTOLoss, APOZeroUnpairedLoss])
def test_a_weight_of_zero_is_zero(cls):
    """axolotl's `weight or 1.0` made it 1."""
    logps = unpaired([1.0, 1.0], [True, False], 0.5)
    assert cls(0.1, 0.0, 2.0)(logps).losses.tolist()[0] == 0
    assert cls(0.1, 2.0, 0.0)(logps).losses.tolist()[1] == 0
    assert cls(0.1, 2.0, 0.0)(logps).losses.tolist()[0] > 0.9


@pytest.mark.parametrize("cls", FAMILY.values())
@pytest.mark.parametrize("good", [True, False])
def test_answers_of_one_kind_alone(cls, good):
    """No mean of nothing: a loss per answer, and gradients."""
    leaf = torch.tensor([1.0, -1.0], requires_grad=True)
    losses = cls()(unpaired([0.0, 0.0], good, 0.1, torch.float32)._replace(policy=leaf)).losses
    losses.mean().backward()
    assert losses.isfinite().all()
    assert (leaf.grad < 0).all() == good
    assert (leaf.grad > 0).all() != good


@pytest.mark.parametrize("cls", [KTOLoss, APOZeroUnpairedLoss])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"desirable_weight": -0.1}, "desirable_weight"),
        ({"undesirable_weight": -1.0}, "undesirable_weight"),
        ({"desirable_weight": math.nan}, "desirable_weight"),
        ({"desirable_weight": 0.0, "undesirable_weight": 0.0}, "no answer is trained on"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_options_without_meaning_are_refused(cls, options, named):
    with pytest.raises(UserError, match=named) as caught:
        cls(**options)
    assert caught.value.code == ExitCode.CONFIG


def test_a_weight_that_bco_does_not_use_cannot_be_given():
    with pytest.raises(TypeError, match="desirable_weight"):
        BCOLoss(desirable_weight=2.0)


def test_only_kto_asks_for_mismatched_answers():
    assert [cls().needs_kl for cls in FAMILY.values()] == [True, False, False]
