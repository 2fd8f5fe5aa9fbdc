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


@pytest.mark.parametrize(("points", "models"), [(3, [4]), (27, [26, 3])])
def test_a_judge_that_scores_compares_many_at_once(runner, points, models):
    some = tasks([round(0.01 * number, 2) for number in range(1, points + 1)])
    runner.run(some)
    measure_win_rates(runner, some, JudgeChoice("reward_model", "judge"))
    found = comparisons()
    assert [len(words[: words.index("--judge")]) for words in found] == models
    assert {judge_of(words) for words in found} == {"judge"}
    assert not any("--judge_reference" in words for words in found)
    assert {rate for rate, _ in read_rates(some).values()} == {(0.5, 0.4, 0.6)}


def test_a_judge_of_pairs_compares_each_point_with_the_reference_alone(runner):
    """It would read the answers of each two points otherwise; a point that is added costs its own comparison."""
    judge = JudgeChoice("llm", "http://judge")
    for betas in (BETAS[:2], BETAS):
        some = tasks(betas)
        runner.run(some)
        measure_win_rates(runner, some, judge)
    found = [words[: words.index("--judge")] for words in comparisons()]
    assert [[Path(word).parent.name for word in models] for models in found] == [
        [task.point.name, "out"] for task in tasks()
    ]
    assert {rate for rate, _ in read_rates(some).values()} == {(0.5, 0.4, 0.6)}
    calls = map(json.loads, Path("calls.txt").read_text().splitlines())
    answered = [words for words in calls if "out/reference_answers.json" in words and words[0] == "evaluate"]
    assert len(answered) == 2 + 1  # the second time with --fresh as well, as the stand-in does not know its results


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


def judge_nobody(runner):
    measure_win_rates(runner, tasks(), JudgeChoice("none"))


def judge_by_one_that_fails(runner):
    Path("fail-compare").touch()
    measure_win_rates(runner, tasks(), JudgeChoice("reward_model", "other"))


def train_the_judge_anew(runner):
    Path("fail-compare").touch()
    Path("out/points/beta-0.1/final_model/flags.json").write_text("{}")
    Path("out/points/beta-0.5/final_model/flags.json").write_text("{}")
    measure_win_rates(runner, tasks(), IMPLICIT)


def answer_anew(runner):
    runner.run(tasks(tokens=16))


def answer_anew_with_one_point_left(runner):
    for beta in BETAS[1:]:
        Path(f"out/points/beta-{beta}/final_model/flags.json").unlink()
        Path(f"out/points/beta-{beta}/final_model").rmdir()
        Path(f"fail-beta-{beta}").touch()
    some = tasks(tokens=16)
    runner.run(some)
    measure_win_rates(runner, some, IMPLICIT)


@pytest.mark.parametrize(
    "change",
    [judge_nobody, judge_by_one_that_fails, train_the_judge_anew, answer_anew, answer_anew_with_one_point_left],
)
def test_a_win_rate_of_other_answers_or_another_judge_is_not_reported(runner, change):
    some = tasks()
    runner.run(some)
    measure_win_rates(runner, some, IMPLICIT)
    change(runner)
    assert {rate for rate, _ in read_rates(some).values()} == {None}
