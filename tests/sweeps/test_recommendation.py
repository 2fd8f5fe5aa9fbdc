"""Which setting is recommended and why, worked by hand and compared with scipy."""

import math

import pytest
from scipy import stats
from support.sweep_records import BETAS, ROWS, make_records

from dpo_lightning.sweeps.recommendation import correlate, recommend, sign_test
from dpo_lightning.sweeps.results import ACCURACY, KL, WIN_RATE, Record, group

HELD_OUT = KL["held_out"]
DRIFT = {"0.01": 0.5, "0.1": 0.05, "0.5": 0.01}


def test_of_those_that_cannot_be_told_from_the_best_the_one_with_the_least_drift():
    """36 and 33 of 40 differ in 3 rows, all one way: p = 0.25. 36 and 20 differ in 16: p = 2/65536."""
    found = recommend(group(make_records({"0.01": 36, "0.1": 33, "0.5": 20}, DRIFT)), HELD_OUT)
    assert (found.best, found.setting, found.measure) == ("beta 0.01", "beta 0.1", ACCURACY)
    assert found.rivals == {"beta 0.1": pytest.approx(0.25)}
    assert found.reason == (
        "beta 0.01 has the highest held-out accuracy by implicit reward: 0.900 (95 % interval 0.769 to 0.960). Not "
        "distinguishable from beta 0.01 (exact sign test over the same held-out rows): beta 0.1 (p = 0.25). Of these, "
        "beta 0.1 has drifted least from the reference: 0.05 nats per token."
    )


def test_paired_rows_tell_apart_what_intervals_do_not():
    """36 and 28 of 40: the intervals overlap, but all 8 rows that differ favour one of them: p = 2/256."""
    records = make_records({"0.01": 36, "0.1": 28}, DRIFT)
    assert records[0].measures[ACCURACY].low < records[1].measures[ACCURACY].high
    assert recommend(group(records), HELD_OUT).setting == "beta 0.01"
    without = [Record(r.point, r.state, "", r.measures) for r in records]
    found = recommend(group(without), HELD_OUT)
    assert (found.setting, math.isnan(found.rivals["beta 0.1"])) == ("beta 0.1", True)
    assert "the intervals overlap" in found.reason


def test_where_nothing_can_be_told_apart_it_says_so():
    found = recommend(group(make_records({"0.01": 30, "0.1": 29, "0.5": 28}, DRIFT)), HELD_OUT)
    assert found.setting == "beta 0.5"
    assert "No setting is distinguishable from beta 0.01" in found.reason
    assert "More held-out rows or seeds are needed" in found.reason


def test_a_win_rate_counts_more_than_accuracy_where_all_have_one():
    records = make_records({"0.01": 36, "0.5": 20}, DRIFT, wins={"0.01": 4, "0.5": 36})
    found = recommend(group(records), HELD_OUT)
    assert (found.setting, found.measure, found.rivals) == ("beta 0.5", WIN_RATE, {})
    assert found.reason.startswith("It has the highest win rate: 0.900")
    one = {**records[0].measures}
    del one[WIN_RATE]
    fewer = [Record(records[0].point, "done", "", one, records[0].outcomes), records[1]]
    assert recommend(group(fewer), HELD_OUT).measure == ACCURACY


def test_one_setting_and_none():
    assert recommend([], HELD_OUT) is None
    assert "the only setting" in recommend(group(make_records({"0.1": 30}, DRIFT)), HELD_OUT).reason


def test_the_sign_test_is_scipys_and_symmetric():
    first = [1.0] * 20 + [0.5] * 5 + [0.0] * 15
    second = [1.0] * 12 + [0.0] * 8 + [0.5] * 5 + [1.0] * 3 + [0.0] * 12
    assert sign_test(first, second) == pytest.approx(stats.binomtest(8, 11).pvalue)
    assert sign_test(second, first) == sign_test(first, second)
    assert sign_test(first, first) == 1.0


def test_seeds_are_averaged_row_by_row():
    records = make_records({"0.1": 30}, DRIFT, seeds=[1, 2])
    other = Record(records[1].point, "done", "", records[1].measures, [0.0] * ROWS)
    (setting,) = group([records[0], other])
    assert setting.outcomes == [0.5] * 30 + [0.0] * 10
    assert setting.measure(HELD_OUT).estimate == pytest.approx(0.05 * 1.015)


def test_the_rank_correlation_is_scipys():
    drift = dict(zip(BETAS, (0.5, 0.1, 0.2, 0.05, 0.06), strict=True))
    records = make_records(dict.fromkeys(BETAS, 30), drift, seeds=[1, 2, 3])
    found = correlate(records, HELD_OUT)
    values = [float(r.point.overrides["model.loss.beta"]) for r in records]
    expected = stats.spearmanr(values, [r.measures[HELD_OUT].estimate for r in records])
    assert found.rho.estimate == pytest.approx(expected.statistic, abs=1e-9)
    half = stats.norm.ppf(0.975) * math.sqrt((1 + expected.statistic**2 / 2) / 12)
    assert found.rho.low == pytest.approx(math.tanh(math.atanh(expected.statistic) - half))
    assert -1 < found.rho.low < found.rho.estimate < found.rho.high < 0
    assert (found.key, found.points, found.p_value < 0.01) == ("model.loss.beta", 15, True)


def test_a_perfect_order_has_no_interval_and_its_exact_p_value():
    drift = dict(zip(BETAS, (5, 4, 3, 2, 1), strict=True))
    found = correlate(make_records(dict.fromkeys(BETAS, 30), drift), HELD_OUT)
    assert (found.rho.estimate, math.isnan(found.rho.low)) == (pytest.approx(-1), True)
    assert found.p_value == pytest.approx(2 / math.factorial(5))


def test_no_correlation_of_two_values_or_of_names():
    assert correlate(make_records({"0.01": 30, "0.1": 30}, DRIFT), HELD_OUT) is None
    names = dict.fromkeys(("DPOLoss", "IPOLoss", "HingeLoss"), 30)
    assert correlate(make_records(names, dict.fromkeys(names, 0.1), key="model.loss"), HELD_OUT) is None
    assert correlate([], HELD_OUT) is None
