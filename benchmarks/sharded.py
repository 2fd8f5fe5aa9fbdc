"""Memory of each of two processes that train together: with whole models (DDP), and with sharded ones (FSDP2).

`python -m benchmarks.sharded SETTINGS`, settings as JSON, is one of the runs, which leaves a file of each process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.workers import TRAINER, make_training

PROCESSES = 2
MIB = 2**20


def memory(model: str, rows: Path, batch: int, max_length: int, folder: Path) -> dict[str, Any]:
    """Peaks of the resident sets of both processes in MiB, and what FSDP2 takes of DDP's.

    Args:
        model: the policy, all of whose weights are trained in float32 against a frozen copy.
        rows: pairs, all of which are trained on once.
        batch: pairs per step and process.
        max_length: tokens of prompt and longer answer.
        folder: where the runs write their checkpoints and final models.
    """
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp2"):
        settings = {"model": model, "rows": str(rows), "batch": batch, "max_length": max_length, "strategy": strategy}
        command = [sys.executable, "-m", "benchmarks.sharded", json.dumps(settings | {"folder": str(folder)})]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
        files = (folder / f"{strategy}-{rank}.json" for rank in range(PROCESSES))
        found[strategy] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for name, floor in (("plain", lambda _: 0.0), ("beyond_imports", lambda rank: rank["imports"])):
        highest = {key: max(rank["peak"] - floor(rank) for rank in found[key]) for key in ("ddp", "fsdp2")}
        found[name] = highest | {"ratio": highest["fsdp2"] / highest["ddp"]}
    return found


def resident() -> float:
    """The resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / MIB


def main() -> None:
    """Train on the rows once, save a checkpoint and the final model, and tell the peak."""
    settings = json.loads(sys.argv[1])
    import torch
    from lightning.pytorch import Trainer

    from dpo_lightning.callbacks import FinalModel, RunCheckpoints
    from dpo_lightning.config.library_noise import silence_libraries
    from dpo_lightning.runs.checkpoint_files import CheckpointFiles

    torch.set_num_threads(1)
    silence_libraries()
    module, data = make_training(settings)  # imports the rest, and loads nothing yet
    imports = resident()
    peaks: dict[str, float] = {}

    class Peaks(RunCheckpoints):
        """Note the peak after each stage."""

        def on_train_start(self, *args: Any) -> None:
            peaks["loading"] = highest()
            super().on_train_start(*args)

        def on_train_end(self, *args: Any) -> None:
            peaks["steps"] = highest()
            super().on_train_end(*args)
            peaks["checkpoint"] = highest()

    trainer = Trainer(
        default_root_dir=settings["folder"],
        strategy=settings["strategy"],
        devices=PROCESSES,
        precision="32-true",
        callbacks=[Peaks(), FinalModel()],
        plugins=[CheckpointFiles()],
        accelerator="cpu",
        **TRAINER,
    )
    trainer.fit(module, data)
    report = {"imports": imports, "steps": trainer.global_step, "stages": peaks, "peak": highest()}
    file = Path(settings["folder"]) / f"{settings['strategy']}-{trainer.global_rank}.json"
    file.write_text(json.dumps(report), encoding="utf-8")


def highest() -> float:
    """The peak of this process's resident set in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
