"""docs/plot_run.py draws what a run's TensorBoard files hold."""

import subprocess
import sys

import plot_run
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from support.command_line import ROOT


@pytest.fixture
def folder(tmp_path):
    """A run that was resumed: two files."""
    for steps in ((2, 4), (6,)):
        logger = TensorBoardLogger(tmp_path, "tensorboard", "")
        for step in steps:
            logger.log_metrics({"train/loss": 1 / step, "train/rewards/margins": step}, step)
        logger.log_metrics({"eval/loss": 0.5}, steps[-1])
        logger.finalize("success")
    return tmp_path


def test_curves_of_a_resumed_run_are_joined(folder):
    curves = plot_run.read_curves(folder)
    assert curves["train/loss"] == ([2, 4, 6], pytest.approx([1 / 2, 1 / 4, 1 / 6]))
    assert curves["eval/loss"] == ([4, 6], [0.5, 0.5])


@pytest.mark.parametrize("target", ["run.png", "elsewhere.png"])
def test_a_picture_is_written(folder, target):
    named = [] if target == "run.png" else [str(folder / target)]
    command = [sys.executable, str(ROOT / "docs" / "plot_run.py"), str(folder), *named]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(folder / target)
    assert (folder / target).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("given", [[], ["/nowhere"]])
def test_without_curves_there_is_no_picture(given):
    command = [sys.executable, str(ROOT / "docs" / "plot_run.py"), *given]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "has no curves" in ran.stderr or "outputs/dpo" in ran.stderr
