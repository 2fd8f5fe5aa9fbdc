"""No two losses are the same function: check rows are few, and two formulas may agree on all of them."""

import itertools

import pytest
import torch
from support.loss_cases import KINDS

from dpo_lightning.losses import PreferenceLoss
from dpo_lightning.types import PairLogps

PAIRS = [kind for kind in KINDS if issubclass(kind, PreferenceLoss)]


def values(kind):
    """Losses of pairs in which either answer has gained, and of which either is the likelier one."""
    draw = torch.Generator().manual_seed(0)
    sums = -10 - 60 * torch.rand(4, 12, generator=draw, dtype=torch.float64)
    lengths = torch.randint(3, 30, (2, 12), generator=draw).double()
    tokens = [part / n for part, n in zip((*sums,), (*lengths, *lengths), strict=True)]
    one = torch.ones(12, dtype=torch.float64)

    def spread(chosen, rejected):
        within = torch.arange(30) < torch.cat([*lengths])[:, None]
        return torch.where(within, torch.cat([chosen, rejected])[:, None], 0)

    logps = PairLogps(
        *sums, *lengths, one, one / 2, spread(*tokens[:2]), spread(*tokens[2:]),
        collisions=-2.5 * torch.cat([*lengths]), kl=torch.rand(24, generator=draw, dtype=torch.float64),
    )  # fmt: skip
    assert (logps.margins < 0).sum() >= 3 <= (logps.margins > 0).sum()
    return kind()(logps).losses


@pytest.mark.parametrize(("one", "other"), itertools.combinations(PAIRS, 2))
def test_two_losses_differ(one, other):
    assert not torch.allclose(values(one), values(other), rtol=1e-6, atol=1e-6)
