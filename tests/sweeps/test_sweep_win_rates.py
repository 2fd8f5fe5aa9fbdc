"""Win rates of points: who judges whom, and that nothing is judged twice."""

import json
import sys
from pathlib import Path

import pytest
from support.command_line import ROOT

from dpo_lightning.sweeps.grid import make_points
from dpo_lightning.sweeps.manifest import Manifest
from dpo_lightning.sweeps.results import WIN_RATE, collect
from dpo_lightning.sweeps.runner import Runner
from dpo_lightning.sweeps.slots import Task
from dpo_lightning.sweeps.win_rates import JudgeChoice, measure_win_rates

PROGRAM = [sys.executable, str(ROOT / "tests/support/fake_program.py")]
BETAS = (0.01, 0.1, 0.5)
IMPLICIT = JudgeChoice("implicit")


@pytest.fixture
def runner(place):
    return Runner(Path("out"), PROGRAM)


def tasks(betas=BETAS, tokens=8, reference="start"):
    points = make_points({"model.loss.beta": [str(beta) for beta in betas]}, [])
    evaluate = ["--data", "rows", "--reference", reference, "--max_new_tokens", str(tokens)]
    return [Task(point, ["--config=c", *point.flags()], evaluate, f"digest {tokens}") for point in points]


def comparisons():
    calls = map(json.loads, Path("calls.txt").read_text().splitlines())
    return [words[1:-2] for words in calls if words[0] == "compare"]


def judge_of(words):
    return words[words.index("--judge_model") + 1]


def read_rates(some):
    records = collect(Path("out"), Manifest([task.point for task in some], [{}] * len(some)))
    return {record.point.name: (record.measures.get(WIN_RATE), record.judge) for record in records}


def test_no_point_judges_itself(runner):
    some = tasks()
    runner.run(some)
    measure_win_rates(runner, some, IMPLICIT)
    first, second = comparisons()
    assert [Path(word).parent.name for word in first[:2]] == ["beta-0.01", "beta-0.5"]
    assert judge_of(first) == "out/points/beta-0.1/final_model"
    assert Path(second[0]).parent.name == "beta-0.1"
    assert judge_of(second) == "out/points/beta-0.5/final_model"
    for words in (first, second):
        assert words[words.index("--judge_reference") + 1] == "start"
    rates = read_rates(some)
    assert {rate for rate, _ in rates.values()} == {(0.5, 0.4, 0.6)}
    assert "beta-0.5" in rates["beta-0.1"][1]


def test_nothing_is_judged_twice(runner):
    some = tasks()
    runner.run(some)
    for _ in range(2):
        measure_win_rates(runner, some, IMPLICIT)
    assert len(comparisons()) == 2
    other = tasks(tokens=16)
    runner.run(other)
    measure_win_rates(runner, other, IMPLICIT)
    assert len(comparisons()) == 4


def test_an_outside_judge_compares_all_at_once(runner):
    some = tasks()
    runner.run(some)
    measure_win_rates(runner, some, JudgeChoice("reward_model", "judge"))
    (words,) = comparisons()
    assert len(words[: words.index("--judge")]) == 4
    assert judge_of(words) == "judge"
    assert "--judge_reference" not in words


@pytest.mark.parametrize(
    ("some", "judge"),
    [(tasks(), JudgeChoice("none")), (tasks((0.1,)), IMPLICIT)],
    ids=["no judge", "one point"],
)
def test_where_there_is_nobody_to_judge(runner, some, judge):
    runner.run(some)
    measure_win_rates(runner, some, judge)
    assert comparisons() == []


def test_a_judge_that_fails_ends_nothing(runner, caplog):
    some = tasks()
    runner.run(some)
    Path("fail-compare").touch()
    measure_win_rates(runner, some, IMPLICIT)
    assert read_rates(some)["beta-0.1"][0] is None
    assert "the judge is down" in caplog.text
