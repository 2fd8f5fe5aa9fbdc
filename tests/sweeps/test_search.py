"""A search by Optuna: what it tries, that it goes on where it was killed, and ranges that are none."""

import optuna
import pytest

from dpo_lightning.errors import UserError
from dpo_lightning.sweeps.manifest import STUDY
from dpo_lightning.sweeps.search import open_study, parse_space, search

SPACE = {"model.loss.beta": ["0.01..0.5"], "data.batch_size": ["2..8"], "model.loss": ["DPOLoss", "IPOLoss"]}


def accuracy(overrides):
    """Highest at beta 0.1."""
    return 1 - abs(float(overrides["model.loss.beta"]) - 0.1)


def test_ranges_and_choices():
    assert parse_space(SPACE) == {
        "model.loss.beta": (0.01, 0.5),
        "data.batch_size": (2, 8),
        "model.loss": ["DPOLoss", "IPOLoss"],
    }


@pytest.mark.parametrize(
    "text",
    ["0.5..0.1", "1..1", "a..b", "..", "1..", "0.01..inf", "-inf..1", "nan..1", "-1e308..1e308", "1..1" + "0" * 400],
)
def test_no_range(text):
    with pytest.raises(UserError, match="no range of finite numbers"):
        parse_space({"model.loss.beta": [text]})


def test_a_search_stores_all_trials_and_scales_ranges(tmp_path):
    tried = []

    def evaluate(chosen):
        tried.append(chosen)
        return [accuracy(overrides) for overrides in chosen]

    search(open_study(tmp_path), parse_space(SPACE), 5, 2, evaluate)
    assert [len(chosen) for chosen in tried] == [2, 2, 1]
    study = open_study(tmp_path)
    assert len(study.trials) == 5
    distributions = study.trials[0].distributions
    assert distributions["model.loss.beta"] == optuna.distributions.FloatDistribution(0.01, 0.5, log=True)
    assert distributions["data.batch_size"] == optuna.distributions.IntDistribution(2, 8)
    flat = [overrides for chosen in tried for overrides in chosen]
    assert study.best_value == max(map(accuracy, flat))
    assert all(0.01 <= float(one["model.loss.beta"]) <= 0.5 and one["data.batch_size"].isdecimal() for one in flat)
    search(study, parse_space(SPACE), 5, 2, evaluate)
    assert len(tried) == 3


def test_a_killed_search_finishes_its_points_and_a_failed_one_counts(tmp_path):
    started = []

    def die(chosen):
        started.extend(chosen)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(open_study(tmp_path), parse_space(SPACE), 3, 1, die)
    open_study(tmp_path).ask()  # killed before it had values
    tried = []

    def evaluate(chosen):
        tried.extend(chosen)
        return [None if len(tried) == 1 else accuracy(one) for one in chosen]

    search(open_study(tmp_path), parse_space(SPACE), 3, 1, evaluate)
    assert tried[0] == started[0]
    states = [trial.state.name for trial in open_study(tmp_path).trials]
    assert states == ["FAIL", "FAIL", "COMPLETE"]


def test_a_study_that_is_none(tmp_path):
    (tmp_path / STUDY).write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="the study cannot be opened") as caught:
        open_study(tmp_path)
    assert caught.value.code == 65


def test_choices_whose_points_would_have_one_folder():
    with pytest.raises(UserError, match="two values have the same name"):
        parse_space({"data.train": ["a/b", "a b"]})
