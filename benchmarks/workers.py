"""Trainers in processes of their own, one step at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

COMPARISONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {"checkpointing": True}),
    "compiled": ({"compiled": True}, {"checkpointing": True}),
    "best": ({"precomputed": True}, {"precomputed": True}),
    "best-compiled": ({"precomputed": True, "compiled": True}, {"precomputed": True}),
    "fp32": ({"bf16": False}, {"bf16": False, "checkpointing": True}),
    "defaults-precomputed": ({"precomputed": True}, {"checkpointing": True}),
    "memory": ({"compiled": True}, {}),
    "memory-checkpointing": ({"checkpointing": True}, {"checkpointing": True}),
}
"""Name -> our settings and TRL's. By default, TRL checkpoints activations and runs in bf16."""


TRAINER: dict[str, Any] = {
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
}
"""What every run of this package has of Lightning's `Trainer`: TRL's clipping, and nothing beside the steps."""


def make_training(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Make the module and the data of a run that trains all weights of a model.

    Args:
        settings: `model`, `rows`, `batch` and `max_length`, as in `Settings`.
    """
    from torch.optim import AdamW

    from dpo_lightning import DPOModule, PreferenceDataModule
    from dpo_lightning.models.causal_lm import CausalLM

    module = DPOModule(CausalLM(settings["model"]), learning_rate=1e-6, optimizer=partial(AdamW, fused=True))
    data = PreferenceDataModule(
        train=settings["rows"],
        batch_size=settings["batch"],
        max_length=settings["max_length"],
        special_tokens="neutralize",
    )
    return module, data


@dataclass(frozen=True)
class Settings:
    """What a worker runs."""

    side: str
    model: str
    rows: str
    batch: int
    max_length: int
    threads: int
    bf16: bool = True
    checkpointing: bool = False
    precomputed: bool = False
    compiled: bool = False
    learning_rate: float = 1e-6
    accelerator: str = "cpu"
    lora: int = 0
    """Rank of an adapter; 0 trains all weights."""
    dtype: str = "float32"
    """Data type of the weights."""


class Worker:
    """A trainer in its own process."""

    def __init__(self, settings: Settings) -> None:
        """Start it, and wait until it is ready for its first batch."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.reference_seconds, self.reference_pairs = 0.0, 1
        # float32 weights, gradients and AdamW's two moments, and the reference's weights where it is held.
        self.static_mib = self.wait("values")["values"] * 4 * (4 if settings.precomputed else 5) / 2**20

    def wait(self, name: str) -> dict[str, Any]:
        """The next report that has a value of this name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report: dict[str, Any] = json.loads(line)
            self.reference_seconds += report.get("reference_seconds", 0.0)
            self.reference_pairs = report.get("reference_pairs", self.reference_pairs)
            if name in report:
                return report
        raise SystemExit(f"the worker ended with exit status {self.process.wait()}")

    def step(self, lines: Sequence[int], layout: str = "") -> dict[str, Any]:
        """Take an optimizer step on rows of the file.

        Args:
            lines: of the rows.
            layout: class name of the collator; left out, it is the default. TRL has one layout.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([*map(str, lines), layout]).rstrip() + "\n")
        self.process.stdin.flush()
        return self.wait("seconds")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
