"""The losses without a reference against the loss functions of TRL 1.16's CPOTrainer and ORPOTrainer."""

from types import SimpleNamespace

import pytest
import torch
from support.loss_cases import pairs

from dpo_lightning.losses import AlphaPOLoss, CPOLoss, ORPOLoss, SimPOLoss

SUMS = torch.tensor([[-0.5, -10.0, -1.0, -40.0], [-0.1, -30.0, -21.0, -3.0]])
LENGTHS = torch.tensor([[1.0, 2.0, 4.0, 50.0], [2.0, 5.0, 3.0, 1.0]])


def ours(loss):
    """Losses and rewards of the pairs above."""
    return loss(pairs(SUMS, torch.zeros(2, 4), LENGTHS, torch.float32))


def stub(**options):
    """As much of a trainer as its loss function looks at."""
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **options)


@pytest.mark.parametrize(
    ("loss", "options", "mean"),
    [
        (CPOLoss(0.3, nll_weight=0.0), {"beta": 0.3, "loss_type": "sigmoid", "alpha": 0.0}, False),
        (SimPOLoss(2.5, 0.7), {"beta": 2.5, "loss_type": "simpo", "simpo_gamma": 0.7, "alpha": 0.0}, True),
        (AlphaPOLoss(2.5, 0.7, 0.25), {"beta": 2.5, "loss_type": "simpo", "simpo_gamma": 0.7, "alpha": 0.25}, True),
        (AlphaPOLoss(2.5, 0.7, -0.5), {"beta": 2.5, "loss_type": "simpo", "simpo_gamma": 0.7, "alpha": -0.5}, True),
    ],
    ids=["cpo", "simpo", "alphapo", "alphapo, below 0"],
)
def test_cpo_simpo_and_alphapo(loss, options, mean):
    """TRL hands its function mean log-probabilities for SimPO and sums for CPO, and so does this."""
    from trl.experimental.cpo import CPOTrainer

    given = SUMS / LENGTHS if mean else SUMS
    theirs = CPOTrainer.cpo_loss(stub(label_smoothing=0.0, **options), *given)
    for mine, other in zip(ours(loss), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_orpo():
    """Its function gives lambda times the log-sigmoid; the likelihood, of the answer alone, is ours."""
    from trl.experimental.orpo import ORPOTrainer

    theirs = ORPOTrainer.odds_ratio_loss(stub(beta=0.3), *(SUMS / LENGTHS))
    mine = ours(ORPOLoss(0.3))
    torch.testing.assert_close(mine.losses + (SUMS / LENGTHS)[0], -theirs[0], rtol=1e-5, atol=1e-6)
    for rewards, other in zip(mine[1:], theirs[1:3], strict=True):
        torch.testing.assert_close(rewards, other)
