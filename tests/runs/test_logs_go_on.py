"""Logs of a run that was killed and goes on: no point of a curve is missing, and none is there twice."""

import csv
import shutil

import pytest
from lightning.pytorch.loggers import CSVLogger
from support import disturbed_runs
from support.command_line import Bench
from support.run_results import read_curves
from support.signalled import run_signalled

from dpo_lightning.runs.log_files import drop_later, keep_tables_whole, read_table

LOGGED = (
    "--trainer.max_epochs=2",
    "--trainer.callbacks+=RunCheckpoints",
    "--trainer.callbacks.every_n_steps=1",
    "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",
    *disturbed_runs.LOGGED,
)


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


def options(out):
    return [word.replace("RUN", out) for word in LOGGED]


def read_rows(out):
    (path,) = out.rglob("metrics.csv")
    return [sorted(row.items()) for row in read_table(path)]


def count_events(out):
    """Points of each curve, those that readers drop included."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(out.glob("tensorboard/events*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return {tag: sorted(steps) for tag, steps in found.items() if "text" not in tag}


@pytest.mark.parametrize("call", [2, 3, 4])
def test_a_run_that_was_killed(call, bench):
    """Within a step: its learning rate is logged already, and the table has not been written for long."""
    ran = bench.fit(*options("whole"), out="whole")
    assert ran.code == 0, ran
    place = f"dpo_lightning.dpo:DPOModule.training_step:{call}"
    code, told = run_signalled("SIGKILL", place, "fit", *bench.options("cut"), *options("cut"))
    assert code == -9, told
    ran = bench.fit(*options("cut"), out="cut")
    assert ran.code == 0, ran
    cut, whole = bench.folder / "cut", bench.folder / "whole"
    assert read_rows(cut) == read_rows(whole)
    assert count_events(cut) == count_events(whole)
    assert read_curves(cut) == read_curves(whole)
    assert "lr-AdamW" in read_curves(cut)


def test_loggers_with_versions(bench):
    """Lightning would take the next one, and leave the old points beside the new ones."""
    named = ("--trainer.max_epochs=2", "--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=run")
    assert bench.fit(*LOGGED[:3], *named[1:], "--trainer.max_epochs=1").code == 0
    assert bench.fit(*LOGGED[:3], *named[1:], "--trainer.max_epochs=2").code == 0
    assert [path.name for path in (bench.folder / "run/lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.parametrize("torn", ["", "step,train/lo", "step,loss\n1"])
def test_a_torn_table(torn, bench):
    """Of an attempt that was killed before its first checkpoint."""
    path = bench.folder / "run/lightning_logs/version_0/metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(torn)
    logger = CSVLogger(bench.folder / "run")
    drop_later([logger], -1, {}, bench.folder / "run")
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.save()
    assert [row["step"] for row in read_table(path)] == ["1"]


def test_a_table_that_was_killed_while_it_was_replaced(bench):
    folder = bench.folder / "run/lightning_logs/version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.kept.csv").write_text("loss,step\n1.0,1\n2.0,2\n")
    logger = CSVLogger(bench.folder / "run")
    drop_later([logger], 1, {"lightning_logs/version_0/metrics.csv": 1}, bench.folder / "run")
    logger.log_metrics({"loss": 3.0, "more": 4.0}, step=2)
    logger.save()
    assert [(row["step"], row["loss"]) for row in read_table(folder / "metrics.csv")] == [("1", "1.0"), ("2", "3.0")]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_table_whose_replacement_fails(bench, monkeypatch):
    """What stops a process while a column is added leaves the table of before."""
    logger = CSVLogger(bench.folder / "run")
    keep_tables_whole([logger])
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.save()
    path = bench.folder / "run/lightning_logs/version_0/metrics.csv"
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", interrupt)
        logger.log_metrics({"loss": 2.0, "more": 3.0}, step=2)
        with pytest.raises(KeyboardInterrupt):
            logger.save()
    assert path.read_bytes() == before


def test_a_run_whose_evaluation_is_missing(bench):
    """What was logged after its last checkpoint is logged anew."""
    assert bench.fit(*options("run")).code == 0
    run = bench.folder / "run"
    rows, events = read_rows(run), count_events(run)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "final_model")
    assert bench.fit(*options("run")).code == 0
    assert (read_rows(run), count_events(run)) == (rows, events)


def test_a_checkpoint_of_its_own_folder(bench):
    """Named by `--ckpt_path`: the run goes back to it, and what was logged later is logged anew."""
    assert bench.fit(*options("run")).code == 0
    run = bench.folder / "run"
    rows, events = read_rows(run), count_events(run)
    ran = bench.fit(*options("run"), "--ckpt_path=run/checkpoints/previous.ckpt")
    assert ran.code == 0, ran
    assert (read_rows(run), count_events(run)) == (rows, events)
