"""`Mark`: how far a point is, in a file beside its folder, and the lock by which one process at a time works on it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from dpo_lightning.atomic_files import open_atomic
from dpo_lightning.json_files import read_json

POINTS = "points"
STALE = 600.0
"""Seconds without a sign of life after which a process of another machine counts as gone."""

State = Literal["missing", "running", "done", "failed"]


@dataclass(frozen=True)
class Mark:
    """The state of a point.

    Attributes:
        state: `missing`, `running`, `done` or `failed`.
        stage: what runs or failed: `fit` or `evaluate`.
        error: the last error line of a failed command.
        code: its exit code.
        evaluated: digest of the options and rows of the evaluation of a point that is done.
        pid, host, process_start, since: the process that runs it.
    """

    state: State = "missing"
    stage: str = ""
    error: str = ""
    code: int = 0
    evaluated: str = ""
    pid: int = 0
    host: str = ""
    process_start: str = ""
    since: str = ""

    @classmethod
    def running(cls, stage: str) -> Mark:
        """Return the mark of a point on which this process works."""
        now = datetime.now().isoformat(timespec="seconds")
        return cls("running", stage, pid=os.getpid(), host=socket.gethostname(),
                   process_start=process_start(os.getpid()), since=now)  # fmt: skip


class PointFiles:
    """The files of one point in the sweep's folder."""

    def __init__(self, folder: Path, name: str) -> None:
        """Name the files; nothing is created."""
        points = folder / POINTS
        self.name = name
        self.run, self.log = points / name, points / f"{name}.log"
        self.mark, self.lock = points / f"{name}.status.json", points / f".{name}.lock"

    @property
    def model(self) -> Path:
        """The trained model, which is there if training is complete."""
        return self.run / "final_model"

    @property
    def summary(self) -> Path:
        """The summary of the evaluation."""
        return self.run / "eval.summary.json"

    @property
    def win_rate(self) -> Path:
        """The win rate of the answers against the reference's, where a judge has compared them."""
        return self.run / "win_rate.json"

    def read_mark(self) -> Mark:
        """Return the point's state; a process that has ended without a mark leaves a missing point."""
        try:
            mark = Mark(**read_json(self.mark))
            age = time.time() - self.mark.stat().st_mtime
        except (OSError, ValueError, TypeError):
            return Mark()
        if mark.state not in get_args(State) or any(
            not isinstance(getattr(mark, field.name), type(field.default)) for field in fields(Mark)
        ):
            return Mark()
        if mark.state == "running" and not is_alive(mark, age):
            return Mark()
        if mark.state == "done" and not (self.model.is_dir() and self.summary.is_file()):
            return Mark()
        return mark

    def write_mark(self, mark: Mark) -> None:
        """Write the point's state, whole or not at all."""
        with open_atomic(self.mark) as file:
            json.dump(asdict(mark), file, indent=1, ensure_ascii=False)

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Lock the point within the block; yields False if another process works on it."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            # A lock may be unknown to other machines; their marks are not.
            yield self.read_mark().state != "running"
        finally:
            os.close(handle)


def is_alive(mark: Mark, age: float) -> bool:
    """Whether the process of a mark is still there; one of another machine is, if it touched its mark recently.

    Args:
        mark: of a running point.
        age: seconds since the file was written or touched.
    """
    if mark.host != socket.gethostname():
        return age < STALE
    return bool(mark.process_start) and process_start(mark.pid) == mark.process_start


def process_start(pid: int) -> str:
    """Return when a process of this machine began, in clock ticks since the machine did; empty if there is none.

    A number of a process is used again; together with this time it is unique.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = status.rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot} {fields[19]}"
