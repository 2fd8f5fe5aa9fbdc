"""Log-ratios of a thousand nats in float32: every loss stays a number with every kind of option, gradients as well."""

import math
from dataclasses import fields, replace

import pytest
import torch
from support.loss_cases import FAMILY, pairs

from dpo_lightning.losses import AlphaPOLoss, ChiPOLoss, ODPOLoss, SPPOLoss
from dpo_lightning.losses.base import MarginLoss, contains
from dpo_lightning.losses.divergences import AlphaDivergence, ForwardKL, JensenShannon

DIVERGENCES = [
    ForwardKL(),
    JensenShannon(),
    *(AlphaDivergence(alpha) for alpha in (-3.0, 0.0, 0.5, 0.96, 0.999, 1.0, 1.001, 1.04, 1.5, 2.0, 5.0)),
]
OPTIONS = {
    "beta": (0.001, 10.0),
    "label_smoothing": (1e-3, 0.49),
    "alpha": (0.0, 1.0),
    "gamma": (0.0, 5.0),
    "penalty": (0.0, 50.0),
    "tau": (0.01, 1.0),
    "max_reward": (0.1, 20.0),
    "keep": (0.3, 1.0),
    "shift": (False, True),
}
EXTREMES = {
    "alphapo, 2": AlphaPOLoss(10.0, 1.0, 2.0),
    "alphapo, -1": AlphaPOLoss(10.0, 1.0, -1.0),
    "alphapo, 1e-5": AlphaPOLoss(10.0, 1.0, 1e-5),
    "odpo of no margin": ODPOLoss(alpha=0.0, scaling="log"),
    "sppo, hard": SPPOLoss(1e-3),
}
for name, loss in FAMILY.items():
    for divergence in DIVERGENCES if isinstance(loss, MarginLoss) else ():
        EXTREMES[f"{name}, {divergence}"] = replace(loss, divergence=divergence)
    for option in (field for field in fields(loss) if field.init):
        within = loss.limits(option.name).get("within")
        for value in OPTIONS.get(option.name, ()):
            if not within or contains(within, value):
                EXTREMES[f"{name}, {option.name}={value}"] = replace(loss, **{option.name: value})


@pytest.mark.parametrize("name", EXTREMES)
def test_far_log_ratios_stay_numbers(name):
    """One of the four log-probabilities, or two against each other, 1000 nats off, both ways."""
    for moved in ((0,), (1,), (2,), (3,), (0, 2), (0, 3), (0, 1), (2, 3), (1, 2)):
        for size in (1e3, -1e3):
            leaves = [torch.zeros(1, requires_grad=True) for _ in range(4)]
            values = [leaf + (size if i in moved else 0) for i, leaf in enumerate(leaves)]
            output = EXTREMES[name](pairs(values[:2], values[2:], ([1.0], [3.0]), torch.float32, margins=[0.0]))
            output.losses.sum().backward()
            assert all(value.isfinite().all() for value in output), (moved, size)
            assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves), (moved, size)


def test_chi_po_bounds_its_exponent_at_20():
    """As the paper's code: from 20 nats on, phi grows like the log-ratio alone. The bound of the margin is 2R."""
    logps = pairs(([25.0], [19.5]), ([0.0], [0.0]))
    output = ChiPOLoss(1e-9, max_reward=1.0)(logps)
    phi = [math.exp(20) - 1 + 25, math.exp(19.5) - 1 + 19.5]
    assert output.chosen_rewards.item() == pytest.approx(1e-9 * phi[0], rel=1e-9)
    assert output.rejected_rewards.item() == pytest.approx(1e-9 * phi[1], rel=1e-9)
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-1e-9 * (phi[0] - phi[1]))), rel=1e-9)
    for sign, loss in ((1, math.log1p(math.exp(-3.0))), (-1, math.log1p(math.exp(3.0)))):
        far = ChiPOLoss(0.1, max_reward=1.5)(pairs(([25.0 * sign], [-25.0 * sign]), ([0.0], [0.0])))
        assert far.losses.item() == pytest.approx(loss, rel=1e-9)
