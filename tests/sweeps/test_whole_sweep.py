"""A sweep of real runs, killed twice and started again, comes to the same as one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command_line import ROOT, Bench

LONGEST = 300.0


def start(bench, out):
    """A sweep of two values on eight rows, each of two steps with a checkpoint, as a process of its own."""
    quiet = bench.overlay(
        "trainer:\n  callbacks:\n"
        "    - class_path: RewardMargins\n"
        "    - class_path: ModelCheckpoint\n"
        "      init_args: {every_n_train_steps: 1, save_last: true, save_top_k: 0}\n"
    )
    options = [word for word in bench.options() if not word.startswith("--output_dir=")]
    swept = ["--over", "model.loss.beta", "0.1", "0.5", "--evaluate", "--max_new_tokens 4"]
    command = [sys.executable, "-m", "dpo_lightning", "sweep", "--output_dir", out, *swept, *options, *quiet]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Path(f"{out}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def kill_when(process, happened):
    """Kill a process without a warning as soon as something has happened."""
    end = time.monotonic() + LONGEST
    while not happened():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "it waits for ever"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def mark(out, name):
    path = Path(out, f"points/{name}.status.json")
    return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


@pytest.mark.timeout(1200)
def test_a_sweep_killed_twice_gives_the_same_table(bench):
    process = start(bench, "killed")
    kill_when(process, lambda: list(Path("killed/points/beta-0.1/checkpoints").glob("*.ckpt")))
    process = start(bench, "killed")
    kill_when(process, lambda: mark("killed", "beta-0.5").get("stage") == "fit")
    assert mark("killed", "beta-0.1")["state"] == "done"
    assert start(bench, "killed").wait(LONGEST) == 0, Path("killed.log").read_text()
    assert start(bench, "whole").wait(LONGEST) == 0, Path("whole.log").read_text()

    def table(out):
        return Path(out, "sweep.md").read_text()

    assert table("killed") == table("whole")
    assert "win rate" in table("whole")
    assert "| 0.1 | done |" in table("whole")
    assert "| 0.5 | done |" in table("whole")
    log = Path("whole/points/beta-0.5.log").read_text()
    assert "reference: 13 rows from whole/reference.safetensors" in log
    assert "computing" not in log
    assert "rows: 8 train, 5 eval, encoded before, from encoded" in log
    curves = Path("whole/curves.svg").read_bytes()
    assert curves == Path("killed/curves.svg").read_bytes()
