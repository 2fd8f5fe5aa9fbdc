"""The options of all losses: what each is where none is given, and where its range ends."""

import math
from dataclasses import MISSING, dataclass, fields

import pytest
from make_losses import make_instance
from support.loss_cases import KINDS

from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.losses import (
    AlphaPOLoss,
    AOTLoss,
    AOTUnpairedLoss,
    APODownLoss,
    APOZeroLoss,
    APOZeroUnpairedLoss,
    BCOLoss,
    BCOPairLoss,
    BetaDPOLoss,
    CalDPOLoss,
    ChiPOLoss,
    CPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPLoss,
    EXOLoss,
    HingeLoss,
    IPOLoss,
    KTOLoss,
    LDDPOLoss,
    LNDPOLoss,
    NCALoss,
    ODPOLoss,
    PlackettLuceLoss,
    PreferenceLoss,
    RDPOLoss,
    RobustLoss,
    SFTLoss,
    SimPOLoss,
    SPPOLoss,
    TDPO1Loss,
    TDPO2Loss,
    WeightedSum,
    WPOLoss,
)
from dpo_lightning.losses.base import option

DEFAULTS = {
    SimPOLoss: {"beta": 2.0, "gamma": 1.0},  # gamma 0.5 of beta, as its authors advise
    AlphaPOLoss: {"beta": 2.5, "gamma": 0.25, "alpha": 0.25},
    CPOLoss: {"nll_weight": 1.0, "normalization": "token_mean"},  # TRL's cpo_alpha is 1
    SFTLoss: {"normalization": "token_mean"},
    IPOLoss: {"normalization": "mean"},
    DPOLoss: {"label_smoothing": 0.0},
    RobustLoss: {"label_smoothing": 0.1},
    AOTLoss: {"label_smoothing": 0.0},
    AOTUnpairedLoss: {"label_smoothing": 0.0},
    EXOLoss: {"label_smoothing": 1e-3},  # TRL's, where it is 0
    LNDPOLoss: {"beta": 5.0},  # Tulu 3's
    DPOPLoss: {"penalty": 5.0},
    RDPOLoss: {"alpha": 0.01},
    ODPOLoss: {"alpha": 1.0, "scaling": "identity"},
    DiscoPOPLoss: {"tau": 0.05},  # TRL's discopop_tau
    ChiPOLoss: {"max_reward": 1.0},
    LDDPOLoss: {"alpha": 0.5},
    TDPO2Loss: {"alpha": 0.5},  # its authors'
    BetaDPOLoss: {"alpha": 0.6, "keep": 1.0, "momentum": 0.9},  # its authors' alpha and momentum
    KTOLoss: {"desirable_weight": 1.0, "undesirable_weight": 1.0},
    APOZeroUnpairedLoss: {"desirable_weight": 1.0, "undesirable_weight": 1.0},
    BCOPairLoss: {"shift": True},
    WeightedSum: {},
    WPOLoss: {},
}
BETA_ALONE = (APODownLoss, APOZeroLoss, BCOLoss, CalDPOLoss, HingeLoss, NCALoss, PlackettLuceLoss, SPPOLoss, TDPO1Loss)
DEFAULTS |= {kind: {} for kind in BETA_ALONE}
"""Numbers and names; beta is 0.1 where nothing else is written. A class that is not here has its check numbers."""

SMOOTHING = {"label_smoothing": ([0.0, 0.49], [-1e-3, 0.5, 0.75])}
AT_LEAST_0 = ([0.0, 1.5, 30.0], [-1e-3, -2.0])
ABOVE_0 = ([1e-3, 30.0], [0.0, -1e-3])
RANGES = {
    DPOLoss: SMOOTHING,
    RobustLoss: SMOOTHING,
    AOTLoss: SMOOTHING,
    AOTUnpairedLoss: SMOOTHING,
    EXOLoss: {"label_smoothing": ([1e-6, 0.49], [0.0, -1e-3, 0.5, 0.75])},
    SimPOLoss: {"gamma": AT_LEAST_0},
    AlphaPOLoss: {"gamma": AT_LEAST_0, "alpha": ([-3.0, 0.0, 3.0], [])},
    CPOLoss: {"nll_weight": AT_LEAST_0},
    DPOPLoss: {"penalty": AT_LEAST_0},
    RDPOLoss: {"alpha": AT_LEAST_0},
    ODPOLoss: {"alpha": AT_LEAST_0},
    TDPO2Loss: {"alpha": AT_LEAST_0},
    DiscoPOPLoss: {"tau": ([1e-3, 1.0], [0.0, -1e-3, 1.001])},
    ChiPOLoss: {"max_reward": ABOVE_0},
    LDDPOLoss: {"alpha": ([0.0, 0.5, 1.0], [-1e-3, 1.001])},
    BetaDPOLoss: {
        "alpha": AT_LEAST_0,
        "keep": ([1e-3, 1.0], [0.0, -1e-3, 1.001]),
        "momentum": ([0.0, 0.999], [-1e-3, 1.0, 1.5]),
    },
    KTOLoss: {"desirable_weight": AT_LEAST_0, "undesirable_weight": AT_LEAST_0},
    APOZeroUnpairedLoss: {"desirable_weight": AT_LEAST_0, "undesirable_weight": AT_LEAST_0},
}
"""By class and option: values that are taken, and values that are not."""


def options(kind):
    """What a user may give, with its default."""
    return {field.name: field.default for field in fields(kind) if field.init and field.default is not MISSING}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_the_options_that_are_left_out(kind):
    beta = {} if kind in (SFTLoss, WeightedSum, WPOLoss) else {"beta": 0.1}
    plain = {name: value for name, value in options(kind).items() if isinstance(value, (int, float, str))}
    assert plain == beta | DEFAULTS[kind]
    assert all(type(plain[name]) is type(value) for name, value in DEFAULTS[kind].items())


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_ranges_end_where_they_are_said_to(kind):
    """Every number but beta has a range here."""
    numbers = {name for name, value in options(kind).items() if isinstance(value, float)}
    ranges = RANGES.get(kind, {}) | ({"beta": ABOVE_0} if "beta" in numbers else {})
    assert ranges.keys() == numbers
    for name, (taken, refused) in ranges.items():
        for value in taken:
            assert getattr(kind(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(UserError, match=rf"{kind.__name__} {name}=") as told:
                kind(**{name: value})
            assert told.value.code == ExitCode.CONFIG


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_option_takes_what_its_limits_name(kind):
    """No option takes what is no number, a number beyond its limits, or a name that is none of its names."""
    for name, value in options(kind).items():
        limits = make_instance(kind).limits(name)
        refused = [math.nan, math.inf, -math.inf] if isinstance(value, float) else []
        if within := limits.get("within"):
            low, high = map(float, within[1:-1].split(","))
            refused += [low - 1e-3, high + 1e-3]
            refused += [end for end, mark in ((low, within[0]), (high, within[-1])) if mark in "()"]
        for bad in refused:
            with pytest.raises(UserError, match=rf"{kind.__name__} {name}=") as told:
                kind(**{name: bad})
            assert told.value.code == ExitCode.CONFIG
        for good in limits.get("one_of", ()):
            assert getattr(kind(**{name: good}), name) == good


@dataclass(frozen=True)
class Limited(PreferenceLoss):
    """A loss whose beta has another default, and an option of each kind."""

    beta: float = 3.0
    share: float = option(0.5, within="[0, 1)")
    kind: str = option("mean", one_of=("mean", "sum"))

    def __call__(self, logps):
        return self.output(self.beta * logps.margins, logps)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"beta": 0.0}, "beta=0.0 must be greater than 0"),
        ({"share": 1.0}, r"share=1.0 must lie in \[0, 1\)"),
        ({"share": -0.1}, r"share=-0.1 must lie in \[0, 1\)"),
        ({"share": math.nan}, "share=nan must be a finite number"),
        ({"kind": "means"}, "kind=means must be one of mean, sum"),
    ],
)
def test_limits_are_inherited_and_named(given, reason):
    assert (Limited(share=0.0).share, Limited(kind="sum").kind, Limited().beta) == (0.0, "sum", 3.0)
    with pytest.raises(UserError, match=reason):
        Limited(**given)


@pytest.mark.parametrize("kind", [KTOLoss, APOZeroUnpairedLoss])
def test_one_kind_of_answer_may_be_left_out_but_not_both(kind):
    assert kind(desirable_weight=0.0).undesirable_weight == 1
    assert kind(undesirable_weight=0.0).desirable_weight == 1
    with pytest.raises(UserError, match="no answer is trained on"):
        kind(desirable_weight=0.0, undesirable_weight=0.0)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], "must be 2 numbers"),
        ([1.0, 1.0, 1.0], "must be 2 numbers"),
        ([1.0, -1e-3], "must be 0 or more each"),
        ([1.0, math.inf], "must be 0 or more each"),
        ([1.0, math.nan], "must be 0 or more each"),
        ([0.0, 0.0], "must not all be 0"),
    ],
)
def test_weights_of_a_mixture(weights, said):
    with pytest.raises(UserError, match=said):
        WeightedSum([DPOLoss(), SFTLoss()], weights)
    assert [weight for weight, _ in WeightedSum([DPOLoss(), SFTLoss()], [0.0, 0.25]).parts] == [0.25]
    with pytest.raises(UserError, match="must name at least one"):
        WeightedSum([], [])


@pytest.mark.parametrize("loss", [PlackettLuceLoss(), BCOLoss(), DPOLoss()])
def test_a_loss_needs_nothing_that_it_does_not_name(loss):
    assert (loss.statistics, loss.reference_free) == (frozenset(), False)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_losses_of_the_same_options_are_equal(kind):
    """State that training moves is no option: it is neither compared nor shown."""
    made = [make_instance(kind) for _ in range(2)]
    assert made[0] == made[1]
    assert "RunningMean" not in repr(made[0])
    if "beta" in options(kind):
        assert kind(beta=0.7) != made[0]
