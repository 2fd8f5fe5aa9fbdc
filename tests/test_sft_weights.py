"""The `weight` of demonstrations: in the loss that is trained and in the one that is logged, and nowhere else."""

import json

import pytest
import torch
from support import whole_runs
from torch.optim import SGD

from dpo_lightning import SFTDataModule
from dpo_lightning.callbacks.summary import summarize
from dpo_lightning.errors import ExitCode, UserError


@pytest.fixture
def rows():
    """Three demonstrations without a weight."""
    return [{name: row[name] for name in ("prompt", "completion")} for row in whole_runs.sft_rows(3)]


def train(model, folder, rows, held_out=(), **options):
    """One step on all rows; module, what was logged, trainer."""
    files = [whole_runs.write_rows(folder, "train", rows)]
    files += [whole_runs.write_rows(folder, "eval", held_out)] if held_out else []
    module = whole_runs.sft(model, optimizer=SGD, learning_rate=whole_runs.SGD_RATE)
    data = SFTDataModule(*files, batch_size=len(rows), max_length=64, shuffle=False)
    memory, trainer = whole_runs.fit(module, data, folder, **options)
    return module, memory, trainer


def assert_same(one, other):
    """Weights and logged loss."""
    for name, value in whole_runs.weights(one[0]).items():
        torch.testing.assert_close(value, other[0].policy.get_parameter(name), rtol=1e-5, atol=1e-6)
    assert one[1].curve("train/loss") == pytest.approx(other[1].curve("train/loss"), rel=1e-6)


def test_a_weight_of_2_is_the_row_twice_and_one_of_0_leaves_it_out(tiny_llama, tmp_path, rows):
    first, second, third = rows
    twice = train(tiny_llama, tmp_path, [{**first, "weight": 2}, second])
    assert_same(twice, train(tiny_llama, tmp_path, [first, first, second]))
    without = train(tiny_llama, tmp_path, [first, {**third, "weight": 0}, second])
    assert_same(without, train(tiny_llama, tmp_path, [first, second]))
    with pytest.raises(AssertionError):
        assert_same(twice, without)


def test_the_held_out_loss_is_weighted_and_its_tokens_are_counted_once(tiny_llama, tmp_path, rows):
    held_out = [{name: row[name] for name in ("prompt", "completion")} for row in whole_runs.sft_rows(3, 50)]
    weighted = [{**row, "weight": weight} for row, weight in zip(held_out, (3, 0, 1), strict=True)]
    _, memory, trainer = train(tiny_llama, tmp_path, rows, weighted)
    summarize(trainer)
    told = json.loads((tmp_path / "metrics.json").read_text())
    _, plain, other = train(tiny_llama, tmp_path, rows, [held_out[0]] * 3 + [held_out[2]])
    assert memory.curve("eval/loss") == pytest.approx(plain.curve("eval/loss"), rel=1e-6)
    lengths = [len(row.completion.ids) for row in trainer.datamodule.encoded["eval"]]
    assert told["eval/tokens"] == sum(lengths)
    assert set(memory.steps[1]) == {"train/loss", "eval/loss", "train/learning_rate", "train/grad_norm"}
    assert other.callback_metrics.keys() == trainer.callback_metrics.keys()


def test_a_step_of_rows_that_do_not_count_trains_nothing_and_has_no_loss(tiny_llama, tmp_path, rows):
    module, memory, trainer = train(tiny_llama, tmp_path, rows[:2])
    files = [{**rows[0], "weight": 0}, {**rows[1], "weight": 0}, rows[0], rows[1]]
    path = whole_runs.write_rows(tmp_path, "four", files)
    again = whole_runs.sft(tiny_llama, optimizer=SGD, learning_rate=whole_runs.SGD_RATE)
    data = SFTDataModule(path, batch_size=2, max_length=64, shuffle=False)
    second, trainer = whole_runs.fit(again, data, tmp_path)
    assert trainer.global_step == 2
    assert second.curve("train/loss") == pytest.approx(memory.curve("train/loss"), rel=1e-6)
    for name, value in whole_runs.weights(module).items():
        torch.testing.assert_close(value, again.policy.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_weights_are_told_once(tiny_llama, tmp_path, rows, capsys):
    train(tiny_llama, tmp_path, [rows[0], {**rows[1], "weight": 0.5}], whole_runs.sft_rows(2, 50))
    line = "tokens of completions count by their `weight`, 0.5 to 1, in the loss; other measures count each once"
    assert capsys.readouterr().out.count(line) == 1
    train(tiny_llama, tmp_path, rows)
    assert "count by their" not in capsys.readouterr().out


def test_rows_none_of_which_counts(tiny_llama, tmp_path, rows):
    nothing = [{**row, "weight": 0} for row in rows]
    with pytest.raises(UserError, match="all 3 training rows have a `weight` of 0") as told:
        train(tiny_llama, tmp_path, nothing)
    assert told.value.code == ExitCode.DATA


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        (-1, "'weight' is negative"),
        (None, "'weight' is not a finite number"),
        ("much", "'weight' is not a finite number"),
    ],
)
def test_weights_that_are_none(tmp_path, rows, weight, what):
    path = whole_runs.write_rows(tmp_path, "rows", [rows[0], {**rows[1], "weight": weight}])
    with pytest.raises(UserError, match=f"{what} at {path}:2") as told:
        SFTDataModule(path).read_rows(["train"])
    assert told.value.code == ExitCode.DATA
