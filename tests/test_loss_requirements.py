"""What a loss needs of rows and reference: refused or said before a weight is loaded."""

import re
from dataclasses import replace

import pytest

from dpo_lightning.data.examples import EncodedAnswer, Origin
from dpo_lightning.data.kinds.pairs import EncodedPair
from dpo_lightning.data.kinds.ranked import EncodedRanked
from dpo_lightning.data.kinds.unpaired import EncodedUnpaired
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.loss_requirements import check_columns, check_reference, report_columns
from dpo_lightning.losses import (
    AOTLoss,
    DPOLoss,
    KTOLoss,
    ODPOLoss,
    PlackettLuceLoss,
    SimPOLoss,
    WeightedSum,
    WPOLoss,
)
from dpo_lightning.references import FrozenCopy, ReferenceFree

ANSWER = EncodedAnswer((1, 2), (True, True))
PLAIN = EncodedPair(Origin("rows.jsonl", 1), (3,), (ANSWER, ANSWER))
OTHER = replace(PLAIN, origin=Origin("rows.jsonl", 7))
MIXTURE = WeightedSum([DPOLoss(), AOTLoss()], [1.0, 1.0])


@pytest.mark.parametrize("margin", [None, -0.5])
def test_a_margin_that_is_missing_or_negative_is_named(margin):
    rows = [replace(PLAIN, margin=1.0), replace(OTHER, margin=margin)]
    with pytest.raises(UserError, match=re.escape("rows.jsonl:7")) as caught:
        check_columns(ODPOLoss(), rows)
    assert caught.value.code == ExitCode.DATA
    assert "rows.jsonl:1" not in str(caught.value)
    check_columns(DPOLoss(), rows)


@pytest.mark.parametrize("loss", [AOTLoss(), MIXTURE])
def test_weights_for_a_loss_that_compares_pairs_are_refused(loss):
    with pytest.raises(UserError, match=re.escape("cannot use a weight of 0.0")):
        check_columns(loss, [PLAIN, replace(OTHER, weight=0.0)])
    check_columns(loss, [PLAIN, OTHER])


def test_what_columns_do_is_said(capsys):
    rows = [replace(PLAIN, weight=0.5, margin=1.0), replace(OTHER, weight=2.0)]
    report_columns(DPOLoss(), "train", rows)
    report_columns(ODPOLoss(), "eval", rows)
    assert capsys.readouterr().out.splitlines() == [
        "note: pairs count by their `weight`, 0.5 to 2, in the loss; other measures count each once",
        "note: train: DPOLoss does not use the column `margin`",
    ]


def test_other_rows_are_called_what_they_are(capsys):
    unpaired = EncodedUnpaired(Origin("rows.jsonl", 1), (3,), (ANSWER,), good=True)
    ranked = EncodedRanked(Origin("rows.jsonl", 1), (3,), (ANSWER, ANSWER))
    for loss, row in ((KTOLoss(), unpaired), (PlackettLuceLoss(), ranked)):
        report_columns(loss, "train", [row])
        report_columns(loss, "train", [row, replace(row, weight=2.0)])
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(" in the loss")[0] for line in out] == [
        "note: answers count by their `weight`, 1 to 2,",
        "note: lists count by their `weight`, 1 to 2,",
    ]


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        (DPOLoss(), PLAIN),
        (KTOLoss(), EncodedUnpaired(Origin("rows.jsonl", 1), (3,), (ANSWER,), good=True)),
        (PlackettLuceLoss(), EncodedRanked(Origin("rows.jsonl", 1), (3,), (ANSWER, ANSWER))),
    ],
)
def test_training_rows_without_any_weight_are_refused(loss, row):
    rows = [replace(row, weight=0.0)] * 2
    with pytest.raises(UserError, match=re.escape("rows.jsonl:1")) as caught:
        check_columns(loss, rows)
    assert caught.value.code == ExitCode.DATA
    check_columns(loss, rows, "eval")
    check_columns(loss, [*rows, row])


LOG = ODPOLoss(scaling="log")


@pytest.mark.parametrize("loss", [LOG, WPOLoss(LOG), WeightedSum([DPOLoss(), LOG], [1.0, 1.0])])
def test_a_margin_of_0_has_no_logarithm(loss):
    rows = [replace(PLAIN, margin=1.0), replace(OTHER, margin=0.0)]
    with pytest.raises(UserError, match=re.escape("needs a margin above 0, here 0.0 at rows.jsonl:7")):
        check_columns(loss, rows)
    check_columns(ODPOLoss(), rows)


def test_a_reference_that_is_not_asked_and_one_that_is_none_are_refused():
    for loss, reference in ((SimPOLoss(), FrozenCopy()), (DPOLoss(), ReferenceFree())):
        with pytest.raises(UserError, match=type(reference).__name__):
            check_reference(loss, reference)
    for loss, reference in ((SimPOLoss(), ReferenceFree()), (DPOLoss(), FrozenCopy()), (SimPOLoss(), None)):
        check_reference(loss, reference)
