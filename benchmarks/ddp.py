"""Two processes of one thread against one: what it costs to share the rows of a step.

`python -m benchmarks.ddp SETTINGS`, settings as JSON, is one of the runs: its last line tells what its steps took.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.workers import TRAINER, make_training

RUNS = 3
"""Of one and of two processes, in turn."""


def efficiency(model: str, rows: Path, batch: int, max_length: int) -> dict[str, Any]:
    """Seconds per pair of one and of two processes, and the share of twice the speed that two reach.

    Args:
        model: the policy, all of whose weights are trained.
        rows: pairs, all of which are trained on once; a process's first step is not counted.
        batch: pairs per step and process.
        max_length: tokens of prompt and longer answer.
    """
    reports: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(RUNS):
        for processes, values in reports.items():
            settings = {"model": model, "rows": str(rows), "batch": batch, "max_length": max_length}
            values.append(run(settings | {"processes": processes}))
    seconds = {name: [report["seconds_per_pair"] for report in values] for name, values in reports.items()}
    ratios = [one / two / 2 for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {"efficiency": statistics.median(ratios), "ratios": ratios, "seconds_per_pair": seconds} | {
        "pairs": {name: values[0]["pairs"] for name, values in reports.items()}
    }


def run(settings: dict[str, Any]) -> dict[str, float]:
    """Seconds per pair of a run in processes of its own, and the pairs that counted."""
    command = [sys.executable, "-m", "benchmarks.ddp", json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    report: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return report


def main() -> None:
    """Train on the rows once; the first process tells the time."""
    settings = json.loads(sys.argv[1])
    import torch
    from lightning.pytorch import Callback, Trainer

    from dpo_lightning.config.library_noise import silence_libraries

    torch.set_num_threads(1)
    silence_libraries()
    steps: list[float] = []

    class Timed(Callback):
        """Note what each step takes, waiting for the other process included."""

        def on_train_batch_start(self, *_: Any) -> None:
            steps.append(-time.perf_counter())

        def on_train_batch_end(self, *_: Any) -> None:
            steps[-1] += time.perf_counter()

    module, data = make_training(settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            default_root_dir=folder,
            strategy="ddp" if settings["processes"] > 1 else "auto",
            devices=settings["processes"],
            precision="bf16-mixed",
            callbacks=[Timed()],
            accelerator="cpu",
            **TRAINER,
        )
        trainer.fit(module, data)
    if trainer.is_global_zero:
        pairs = (len(steps) - 1) * settings["batch"] * trainer.world_size
        print(json.dumps({"seconds_per_pair": sum(steps[1:]) / pairs, "pairs": pairs}), flush=True)


if __name__ == "__main__":
    main()
