"""The loss that is logged is the one that is trained: by weight; other measures count every row once."""

from types import SimpleNamespace

import pytest
import torch

from dpo_lightning.callbacks.ranked_rewards import RankedRewards
from dpo_lightning.callbacks.summary import held_out_lines
from dpo_lightning.callbacks.unpaired_rewards import UnpairedRewards
from dpo_lightning.metrics import Means
from dpo_lightning.types import RankedOutput, UnpairedLogps, UnpairedOutput

LOSSES = torch.tensor([1.0, 4.0, 9.0])
BATCH = SimpleNamespace(
    indices=torch.tensor([0, 1, -1]),
    weights=torch.tensor([3.0, 1.0, 0.0]),
    columns={"good": torch.tensor([True, False, True])},
)


def means(callback, outputs):
    measure = Means(callback.names)
    measure.update(*callback.values(outputs, BATCH))
    return {name: float(value) for name, value in measure.compute().items()}


def test_unpaired_rows():
    logps = UnpairedLogps(LOSSES, LOSSES, LOSSES, BATCH.columns["good"])
    found = means(UnpairedRewards(), {"output": UnpairedOutput(LOSSES, LOSSES), "logps": logps})
    assert found["loss"] == pytest.approx((3 * 1 + 4) / 4)
    assert found["desirable"] == pytest.approx(0.5)


def test_ranked_lists():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = means(RankedRewards(), {"output": RankedOutput(LOSSES, rewards, torch.ones(3, 2, dtype=torch.bool))})
    assert found["loss"] == pytest.approx((3 * 1 + 4) / 4)
    assert found["rewards/accuracies"] == pytest.approx(0.5)


def test_ranked_lists_count_the_same_whatever_their_length():
    """5 answers with 4 of 10 pairs tied, 3 answers with 1 of 3, and a filler."""
    rewards = torch.tensor([[5.0, 5.0, 3.0, 3.0, 3.0], [1.0, 2.0, 1.0, 0.0, 0.0], [0.0] * 5])
    mask = torch.tensor([[True] * 5, [True, True, True, False, False], [True] * 5])
    found = means(RankedRewards(), {"output": RankedOutput(LOSSES, rewards, mask)})
    assert found["rewards/ties"] == pytest.approx((4 / 10 + 1 / 3) / 2)
    assert found["rewards/accuracies"] == pytest.approx((6 / 10 + 1 / 3) / 2)
    assert (found["rewards/best"], found["rewards/worst"], found["rewards/margins"]) == (3, 2, 1)


MARGINS = {"eval/rewards/accuracies": 0.5, "eval/rewards/ties": 0.0, "eval/rewards/margins": 0.1}
PAIRS = MARGINS | {
    "eval/logps/accuracies": 0.5,
    "eval/logps/margins": -69.0,
    "eval/rewards/accuracies_ci95": [0.2, 0.8],
}


@pytest.mark.parametrize(
    "metrics",
    [
        PAIRS,
        MARGINS | {"eval/rewards/best": 0.1},
        {"eval/desirable": 0.5, "eval/rewards/chosen": 0.1, "eval/rewards/rejected": 0.0, "eval/kl": 0.1},
    ],
)
def test_held_out_rows_without_any_weight_have_no_loss(metrics):
    """They end in a summary without that line."""
    assert not any("held-out loss" in line for line in held_out_lines(metrics, 4))
    assert "held-out loss       0.7000" in held_out_lines(metrics | {"eval/loss": 0.7}, 4)[-1]


def test_a_loss_without_a_reference_has_a_score_and_no_nats():
    """Its reward is no log-ratio, and nats between policy and reference there are none."""
    told = "\n".join(held_out_lines(PAIRS, 4))
    assert "0.500 by the loss's own score (95 %" in told
    assert "implicit" not in told
    assert "nats" not in told
    told = "\n".join(held_out_lines(PAIRS | {"eval/logps/ref_accuracies": 0.5}, 4))
    assert "by implicit reward" in told
    assert "0.1000 reward, -69.000 nats" in told
