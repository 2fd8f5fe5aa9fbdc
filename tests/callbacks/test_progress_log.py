"""`ProgressLog`: what is logged of training, evaluation and prediction, and when, by a clock of the test's own."""

import io
import json
import re
import sys

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from support import short_runs
from support.command_line import CONFIGS, ON_CPU, QUIET, Bench, json_lines, run
from torch.utils.data import DataLoader

from dpo_lightning.callbacks import ProgressLog, pace, progress_log
from dpo_lightning.data.datamodules import PreferenceDataModule


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Batches(Callback):
    """Makes training and evaluation batches take some seconds of the clock."""

    def __init__(self, clock, training, evaluation=0.0):
        self.clock, self.training, self.evaluation = clock, training, evaluation

    def on_train_batch_start(self, *_):
        self.clock.now += self.training

    def on_validation_batch_start(self, *_):
        self.clock.now += self.evaluation

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


class Terminal(io.StringIO):
    """An output that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress_log, "monotonic", made)
    monkeypatch.setattr(pace, "monotonic", made)
    return made


@pytest.fixture
def files(tmp_path):
    held_out = [{"prompt": f"Say {k}", "chosen": f"{k}.", "rejected": "no"} for k in range(5)]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    return {"train": str(short_runs.write_pairs(tmp_path / "train.jsonl")), "eval": str(tmp_path / "eval.jsonl")}


@pytest.fixture
def module(tiny_llama):
    return short_runs.module(tiny_llama)


def lines(capsys):
    """Progress lines so far."""
    starts = ("training: ", "evaluating", "predicting")
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(starts)]


def fit(module, files, folder, clock, seconds, *, steps=4, evaluation=0.0, log=None, **options):
    """Steps of two pairs that take `seconds` each."""
    data = PreferenceDataModule(**files, batch_size=2, max_length=128)
    # The clock is moved on between the start of a batch and its end, as by a forward pass.
    watching = [log or ProgressLog(), Batches(clock, seconds, evaluation)]
    options = {"enable_checkpointing": False, "limit_val_batches": 0, "log_every_n_steps": 2} | options
    return short_runs.fit(module, None, folder, steps, data=data, callbacks=watching, **options)


def test_steps_are_logged_with_their_means_speed_and_time_left(module, files, tmp_path, clock, capsys):
    trainer = fit(module, files, tmp_path, clock, 10.0)
    first, last = lines(capsys)
    assert first.startswith("training: step 2 of 4, loss 0.")
    assert first.endswith(", 0.2 pairs/s, 20 s left")
    means = {name: value for part in trainer.callbacks for name, value in getattr(part, "logged", {}).items()}
    assert last == (
        f"training: step 4 of 4, loss {means['train/loss']:.4f}, accuracy {means['train/rewards/accuracies']:.4f}, "
        f"margin {means['train/rewards/margins']:.4f}, 0.2 pairs/s"
    )


def test_slow_steps_are_logged_between_two_log_steps(module, files, tmp_path, clock, capsys):
    """Without means, which are known every `log_every_n_steps` only."""
    fit(module, files, tmp_path, clock, 31.0, log_every_n_steps=4)
    assert lines(capsys)[:3] == [
        "training: step 1 of 4, 0.0645 pairs/s, 1 min 33 s left",
        "training: step 2 of 4, 0.0645 pairs/s, 1 min 2 s left",
        "training: step 3 of 4, 0.0645 pairs/s, 31 s left",
    ]


def test_slow_micro_batches_are_logged_within_a_step(module, files, tmp_path, clock, capsys):
    fit(module, files, tmp_path, clock, 20.0, steps=1, accumulate_grad_batches=3, log_every_n_steps=1)
    found = lines(capsys)
    assert found[0] == "training: step 0 of 1, 2 of 3 micro-batches"
    assert found[1].startswith("training: step 1 of 1, loss 0.")
    assert found[1].endswith(", 0.1 pairs/s")
    assert len(found) == 2


def test_fast_steps_have_their_lines(module, files, tmp_path, clock, capsys):
    """`log_every_n_steps` alone says how often."""
    fit(module, files, tmp_path, clock, 0.01, log_every_n_steps=1)
    assert [line.partition(",")[0] for line in lines(capsys)] == [f"training: step {k} of 4" for k in (1, 2, 3, 4)]


def test_evaluations_leave_training_its_lines(module, files, tmp_path, clock, capsys):
    """Steps of a second, each with an evaluation: two seconds pass between two lines of a kind."""
    fit(module, files, tmp_path, clock, 1, steps=8, val_check_interval=1, limit_val_batches=1.0)
    found = [line.split(",")[0] for line in lines(capsys)]
    assert [line for line in found if line.startswith("training")] == [f"training: step {n} of 8" for n in (2, 4, 6, 8)]
    assert found.count("evaluating: 5 rows") == 4  # each of two seconds


def test_a_run_that_goes_on_counts_its_own_steps(module, files, tmp_path, clock, capsys):
    """Speed is of the steps that it takes itself."""
    saved = {"enable_checkpointing": True, "log_every_n_steps": 4}
    fit(module, files, tmp_path, clock, 5.0, steps=2, **saved)
    capsys.readouterr()
    checkpoint = tmp_path / "checkpoints" / "step=2.ckpt"
    fit(module, files, tmp_path, clock, 40.0, ckpt=checkpoint, **saved)
    assert lines(capsys)[0] == "training: step 3 of 4, 0.05 pairs/s, 40 s left"


def test_evaluation_is_logged_by_rows(module, files, tmp_path, clock, capsys):
    """Five rows in batches of two: the last one is shorter."""
    whole = {"limit_val_batches": 1.0, "val_check_interval": 2, "steps": 2}
    fit(module, files, tmp_path, clock, 10.0, evaluation=31.0, **whole)
    found = lines(capsys)
    assert found[0].startswith("training: step 2 of 2, loss")
    assert found[0].endswith("0.2 pairs/s")
    assert found[1:] == [
        "evaluating: 5 rows",
        "evaluating: 2 of 5 rows, about 46 s left",
        "evaluating: 4 of 5 rows, about 16 s left",
    ]


def test_the_time_left_of_an_evaluation_goes_by_tokens(module, files, tmp_path, clock, capsys):
    """The longest rows come first: by rows, the half of them would seem to take as long as the other half."""
    rows = [{"prompt": "Say", "chosen": "yes " * count, "rejected": "no"} for count in (1, 12)]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = PreferenceDataModule(**files, batch_size=1, max_length=128)
    watching = [ProgressLog(), Batches(clock, 0, 60.0)]
    trainer = short_runs.trainer(tmp_path, callbacks=watching, enable_checkpointing=False)
    trainer.validate(module, data, verbose=False)
    short, long = (row.length for row in data.encoded["eval"])
    assert lines(capsys) == ["evaluating: 2 rows", f"evaluating: 1 of 2 rows, about {60 * short / long:.0f} s left"]


def test_a_part_of_the_rows_is_counted_as_such(module, files, tmp_path, clock, capsys):
    fit(module, files, tmp_path, clock, 10.0, steps=2, limit_val_batches=2, val_check_interval=2)
    assert lines(capsys)[1:] == ["evaluating: 4 rows"]


def test_evaluation_is_no_time_of_a_step(module, files, tmp_path, clock, capsys):
    fit(module, files, tmp_path, clock, 10.0, evaluation=1000.0, limit_val_batches=1.0, val_check_interval=2)
    last = [line for line in lines(capsys) if line.startswith("training")][-1]
    assert last.endswith(", 0.2 pairs/s")


@pytest.mark.parametrize(("command", "word"), [("test", "evaluating"), ("predict", "predicting")])
def test_other_passes_over_held_out_rows_are_logged(module, files, tmp_path, clock, capsys, command, word):
    data = PreferenceDataModule(**files, batch_size=2, max_length=128)
    watching = [ProgressLog(), Batches(clock, 0, 31.0)]
    trainer = short_runs.trainer(tmp_path, callbacks=watching, enable_checkpointing=False)
    getattr(trainer, command)(module, datamodule=data)
    assert lines(capsys)[:2] == [f"{word}: 5 rows", f"{word}: 2 of 5 rows, about 46 s left"]


def test_a_loader_of_somebody_else_is_counted_by_batches(module, files, tmp_path, clock, capsys):
    data = PreferenceDataModule(**files, batch_size=2, max_length=128)
    watching = [ProgressLog(), Batches(clock, 0, 31.0)]
    trainer = short_runs.trainer(tmp_path, callbacks=watching, enable_checkpointing=False)
    data.prepare("validate", module)
    batch = data.collator.collate(data.encoded["eval"][:2], [0, 1])
    trainer.validate(module, DataLoader([batch, batch], batch_size=None), verbose=False)
    assert lines(capsys) == ["evaluating: 2 batches", "evaluating: 1 of 2 batches, about 31 s left"]


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_a_bar_or_lines_and_never_both(module, files, tmp_path, clock, monkeypatch, terminal, shown):
    """On a terminal the bar; in a file the lines, and no bar."""
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    data = PreferenceDataModule(**files, batch_size=2, max_length=128)
    bar = TQDMProgressBar()
    watching = [ProgressLog(), bar, Batches(clock, 10.0)]
    options = {"enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0, "logger": False}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=2, callbacks=watching, **options)
    trainer.fit(module, datamodule=data)
    assert ("training: step 2 of 2" in out.getvalue()) is not shown
    assert bar.is_enabled is shown


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_logs(module, tmp_path, clock, capsys, monkeypatch, first):
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda _: first))
    trainer, log = short_runs.trainer(tmp_path, enable_checkpointing=False), ProgressLog()
    log.setup(trainer, module, "validate")
    log.on_validation_start(trainer, module)
    assert bool(lines(capsys)) is first


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_every_command_has_it(tiny_llama, tmp_path, command):
    """Without being named in a config, and once."""
    bench = Bench(tmp_path, tiny_llama)
    found = bench.run(command).out
    word = "predicting" if command == "predict" else "evaluating"
    assert found.count(f"{word}: 5 rows\n") == 1
    assert ("training: step 2 of 2, loss" in found) is (command == "fit")


def test_its_options_come_from_a_config(tiny_llama, tmp_path):
    bench = Bench(tmp_path, tiny_llama)
    ran = bench.fit("--trainer.callbacks", "ProgressLog", "--trainer.callbacks.every_n_seconds", "1e-9")
    assert ran.code == 0, ran
    assert "evaluating: 4 of 5 rows, " in ran.out
    assert [line.partition(",")[0] for line in ran.out.splitlines() if line.startswith("training:")] == [
        "training: step 1 of 2",
        "training: step 2 of 2",
    ]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["--trainer.max_epochs=3"], 6),
        (["--trainer.max_epochs=3", "--trainer.max_steps=5"], 5),
        (["--trainer.max_epochs=3", "--trainer.limit_train_batches=1"], 3),
        (["--trainer.max_epochs=3", "--trainer.accumulate_grad_batches=2"], 3),
        (["--trainer.max_epochs=3", "--data.batch_size=3", "--trainer.accumulate_grad_batches=2"], 6),
    ],
)
def test_the_total_is_where_the_run_ends(tiny_llama, tmp_path, options, last):
    """In optimizer steps; a line for each of them."""
    bench = Bench(tmp_path, tiny_llama)
    ran = bench.fit(*options)
    assert ran.code == 0, ran
    found = [line.partition(",")[0] for line in ran.out.splitlines() if line.startswith("training:")]
    assert found == [f"training: step {k} of {last}" for k in range(1, last + 1)]
    assert bench.json("metrics.json")["step"] == last
    pattern = r"training: step \d+ of \d+, loss [\d.]+, accuracy [\d.]+, margin [-\d.]+, [\d.,]+ pairs/s(, \d+ s left)?"
    assert all(re.fullmatch(pattern, line) for line in ran.out.splitlines() if line.startswith("training:"))


@pytest.mark.parametrize(("recipe", "unit"), [("kto.yaml", "answers"), ("sft.yaml", "rows")])
def test_rows_have_the_name_of_their_kind(tiny_llama, tmp_path, recipe, unit):
    column = {"label": True} if unit == "answers" else {}
    rows = [{"prompt": f"Say {k}", "completion": f"{k}.", **column} for k in range(8)]
    rows[0] |= {"label": False} if column else {}
    file = json_lines(tmp_path / "rows.jsonl", rows)
    ran = run(
        "fit", "--config", CONFIGS / recipe, "--output_dir", tmp_path / "run", "--model.policy.path", tiny_llama,
        "--data.train", file, "--data.eval", "null", "--data.max_length=64", *ON_CPU, *QUIET,
    )  # fmt: skip
    assert ran.code == 0, ran
    assert f" {unit}/s" in ran.out
