"""Loggers whose folder is full, removed or cannot be written: one warning, and the training goes on."""

import shutil
import threading

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.fault_tools import needs, run_with_small_disk

from dpo_lightning.logger_failures import hide_writer_thread, tolerate_failures


def warnings(ran):
    return [line for line in ran.out.splitlines() if line.startswith("warning: ")]


@pytest.mark.parametrize("method", ["log_metrics", "save", "finalize"])
def test_a_logger_that_fails_is_left_out(method, bench, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardLogger, method, fail)
    ran = bench.fit()
    assert ran.code == 0, ran
    (line,) = warnings(ran)
    assert "TensorBoardLogger cannot write: [Errno 28] No space left on device" in line
    assert (bench.folder / "run/final_model/model.safetensors").exists()
    assert bench.json("metrics.json")


def test_a_removed_folder_is_a_warning(bench, monkeypatch):
    logger = CSVLogger(bench.folder / "logs", "csv", "")
    tolerate_failures([logger])
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    shutil.rmtree(bench.folder / "logs")
    (bench.folder / "logs").write_text("no folder")
    for step in (2, 3):
        logger.log_metrics({"a": 1.0}, step)
        logger.save()


def test_other_mistakes_of_a_logger_stay_errors(tmp_path):
    logger = CSVLogger(tmp_path, "csv", "")
    tolerate_failures([logger])
    with pytest.raises(AttributeError):
        logger.log_metrics("no metrics", 1)


def test_only_the_writers_failure_is_hidden(capsys):
    tolerate_failures([])
    assert threading.excepthook is hide_writer_thread
    thread = threading.Thread(target=lambda: 1 / 0)
    shown = []
    before, hide_writer_thread.before = hide_writer_thread.before, shown.append
    try:
        thread.start()
        thread.join()
    finally:
        hide_writer_thread.before = before
    assert shown[0].exc_type is ZeroDivisionError


@needs("unshare")
@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger"])
def test_a_full_disk_of_the_logs_ends_no_run(kind, bench):
    logs = bench.folder / "logs"
    named = [f"--trainer.logger={kind}", f"--trainer.logger.save_dir={logs}", "--trainer.max_epochs=8"]
    ran = run_with_small_disk(logs, "4k", ["fit", *bench.options(), *named])
    assert ran.returncode == 0, ran
    assert ran.stdout.count(f"{kind} cannot write: [Errno 28] No space left on device") == 1
    assert "Traceback" not in ran.stderr
    assert (bench.folder / "run/final_model/model.safetensors").exists()
