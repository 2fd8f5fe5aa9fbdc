"""Two processes that train together stop after the same step, whichever of them a signal reaches first."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import ROOT, Bench

LONGEST = 300.0


@pytest.fixture
def bench(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, tiny_llama)


def start(bench, out, strategy):
    """A run on two ranks, which Lightning starts, of 16 steps with a pause after each."""
    (bench.folder / "slowly.py").write_text(
        "import time\n"
        "from lightning.pytorch import Callback\n\n"
        "class Slowly(Callback):\n"
        "    def on_train_batch_end(self, *args):\n"
        "        time.sleep(0.3)\n"
    )
    options = ("--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_epochs=8", "--data.batch_size=2")
    more = ("--allow-class-path=slowly", "--trainer.callbacks+=slowly.Slowly")
    command = [sys.executable, "-m", "dpo_lightning", "fit", *bench.options(out), *options, *more]
    paths = os.pathsep.join([str(ROOT), str(bench.folder)])
    with (bench.folder / f"{out}.log").open("ab") as log:
        return subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
        )


def wait_for_step(bench, out, process):
    """Wait until a run has trained its first epoch, of two steps."""
    end = time.monotonic() + LONGEST
    while "evaluating: " not in (text := (bench.folder / f"{out}.log").read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_signal_stops_both(strategy, bench):
    """The launcher gets it, as from a batch script; the run goes on to the same weights."""
    process = start(bench, "cut", strategy)
    wait_for_step(bench, "cut", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONGEST) == 75, (bench.folder / "cut.log").read_text()
    stopped = torch.load(bench.folder / "cut/checkpoints/last.ckpt", weights_only=True)
    assert 0 < stopped["global_step"] < 16
    assert start(bench, "cut", strategy).wait(LONGEST) == 0, (bench.folder / "cut.log").read_text()
    assert start(bench, "whole", strategy).wait(LONGEST) == 0
    one, other = (load_file(bench.folder / out / "final_model/model.safetensors") for out in ("cut", "whole"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
