"""What is read from a model's record: the loss that an evaluation reports."""

import pytest

from dpo_lightning.evaluation.record import Record
from dpo_lightning.losses import AOTLoss, DPOLoss, IPOLoss
from dpo_lightning.runs.lineage import Stage


@pytest.mark.parametrize(
    ("loss", "beta", "reported"),
    [
        (IPOLoss(beta=0.2), None, IPOLoss(beta=0.2)),
        (IPOLoss(beta=0.2), 0.5, IPOLoss(beta=0.5)),
        (DPOLoss(beta=0.1, label_smoothing=0.2), 0.5, DPOLoss(beta=0.5, label_smoothing=0.2)),
        (AOTLoss(beta=0.2), None, DPOLoss(beta=0.2)),
        (AOTLoss(beta=0.2), 0.5, DPOLoss(beta=0.5)),
    ],
)
def test_another_beta_leaves_the_loss(loss, beta, reported):
    stage = Stage("DPOModule", {"path": "start"}, "", "", settings={"loss": repr(loss)})
    assert Record(stage).make_loss(beta) == reported


def test_the_loss_without_a_record():
    assert Record(None).make_loss(None) == DPOLoss(beta=0.1)
    assert Record(None).make_loss(0.5) == DPOLoss(beta=0.5)
