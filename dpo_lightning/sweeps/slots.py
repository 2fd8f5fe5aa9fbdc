"""`Task` and `Slot`: what it takes to carry out a point, and a point on which this process works."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass

from dpo_lightning.sweeps.grid import Point
from dpo_lightning.sweeps.marks import Mark, PointFiles
from dpo_lightning.sweeps.processes import send

Steps = Generator[tuple[str, list[str]], int, Mark]
"""Yields the stage and the command of each step, receives its exit code, and returns the final mark."""


@dataclass(frozen=True)
class Task:
    """What it takes to carry out one point.

    Attributes:
        point: its name and overrides.
        fit: arguments of `fit` without the folder.
        evaluate: arguments of `evaluate` without the model and the output.
        evaluated: digest of the options and the rows of the evaluation.
    """

    point: Point
    fit: list[str]
    evaluate: list[str]
    evaluated: str = ""


@dataclass
class Slot:
    """A point that is being worked on."""

    number: int
    task: Task
    files: PointFiles
    steps: Steps
    claim: ExitStack
    began: float
    stage: str = ""
    process: subprocess.Popen[bytes] | None = None

    def pass_on(self) -> None:
        """Stop the command at its next step or row, from which it goes on in a later start."""
        if self.process is not None:
            send(self.process, signal.SIGTERM)

    def leave(self) -> None:
        """Leave the point as one that is not done."""
        self.files.mark.unlink(missing_ok=True)
        self.claim.close()
