"""What cannot be asked of a loss: another loss's options, and values for which a formula has no meaning."""

import math
from dataclasses import FrozenInstanceError

import pytest

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import DPOLoss, HingeLoss, IPOLoss, RobustLoss, WeightedSum, WPOLoss


@pytest.mark.parametrize("cls", [HingeLoss, IPOLoss])
def test_a_smoothing_that_means_nothing_for_a_loss_cannot_be_given(cls):
    """TRL accepts a label smoothing for `sigmoid` and ignores it."""
    with pytest.raises(TypeError, match="label_smoothing"):
        cls(label_smoothing=0.1)


@pytest.mark.parametrize("cls", [DPOLoss, RobustLoss, HingeLoss])
def test_a_normalization_that_means_nothing_for_a_loss_cannot_be_given(cls):
    with pytest.raises(TypeError, match="normalization"):
        cls(normalization="sum")


@pytest.mark.parametrize("cls", [DPOLoss, RobustLoss, HingeLoss, IPOLoss])
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf, -math.inf])
def test_a_beta_without_meaning_is_refused(cls, beta):
    with pytest.raises(UserError, match="beta") as caught:
        cls(beta=beta)
    assert caught.value.code == ExitCode.CONFIG == 64
    assert "fix: set --model.loss.beta to another value" in str(caught.value)
    assert f"at {cls.__name__}.beta" in str(caught.value)
    assert f"where {cls.__name__} is a part of another loss, set `beta` there" in str(caught.value)


@pytest.mark.parametrize("inner", [WPOLoss(), WeightedSum([DPOLoss(), WPOLoss()], [1.0, 1.0])])
def test_a_pair_is_not_weighted_twice(inner):
    with pytest.raises(UserError, match="applies a weight per pair already") as caught:
        WPOLoss(inner)
    assert caught.value.code == ExitCode.CONFIG


@pytest.mark.parametrize("cls", [DPOLoss, RobustLoss])
@pytest.mark.parametrize("smoothing", [-0.01, 0.5, 0.7, 1.0, math.nan, math.inf])
def test_a_smoothing_outside_its_range_is_refused(cls, smoothing):
    """At 0.5 a label says nothing, and robust's formula divides by 0."""
    with pytest.raises(UserError, match="label_smoothing") as caught:
        cls(label_smoothing=smoothing)
    assert caught.value.code == ExitCode.CONFIG


def test_an_unknown_normalization_is_refused():
    """A misspelt `mean` must not become the sum, which is orders of magnitude larger."""
    loss = IPOLoss()
    object.__setattr__(loss, "normalization", "means")  # past the type check that only tests have
    with pytest.raises(UserError, match="normalization") as caught:
        loss.__post_init__()
    assert caught.value.code == ExitCode.CONFIG


def test_a_loss_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        DPOLoss().beta = 0.2
