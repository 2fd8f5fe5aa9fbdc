"""Stopping on request: a signal or a time limit sets a flag, which is looked at between stages and within long loops.

What is shared between ranks is agreed on by all of them (`raise_if_any`): a rank that stops alone leaves the others
waiting for it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from dpo_lightning import signals
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.signals import install as install

MAX_TIME = "trainer.max_time"
JOB_END = "the end of the Slurm job"

MARGIN = 120.0
"""Seconds before the end of a Slurm job at which a command stops, to finish a step and write a checkpoint."""

LARGEST_SHARE = 0.1
"""Most of a Slurm job's time that the margin may take."""

BEGAN = time.monotonic()
"""When this process began, from which `trainer.max_time` counts."""

_deadlines: dict[str, float] = {}

_deferred: list[bool] = [False]
"""Whether this process stops only together with others, which it has not met yet."""


class Stopped(UserError):  # noqa: N818 - nothing has failed
    """A signal or a time limit stopped a command at a boundary; the same command goes on from what is saved."""

    def __init__(self, kept: str = "") -> None:
        """Describe the end.

        Args:
            kept: what was saved, from which the same command goes on, such as `step 40 is saved`; empty for nothing
                new: an earlier start of the same command may have saved something.
        """
        what = f"stopped by {reason()}: {kept or 'nothing new was saved'}"
        fix = f"run the same command again{': it goes on' if kept else ''}"
        super().__init__(ExitCode.RESUMABLE, Problem(what), fix)


def requested() -> bool:
    """Whether a signal has come to this process, or one of its time limits has passed."""
    return bool(signals.noted) or any(time.monotonic() >= end for end in _deadlines.values())


def reason() -> str:
    """Name the signal or the time limit that stops this process."""
    if signals.noted:
        return signals.noted[0].name
    passed = [name for name, end in _deadlines.items() if time.monotonic() >= end]
    return passed[0] if passed else "a signal to another process"


def set_deadline(seconds: float | None, name: str = MAX_TIME) -> None:
    """Stop this process some seconds after its start; None removes the limit of this name."""
    _deadlines.pop(name, None)
    if seconds is not None:
        _deadlines[name] = BEGAN + seconds


def follow_slurm() -> None:
    """Stop this process shortly before its Slurm job ends, where Slurm says when that is."""
    try:
        end = float(os.environ["SLURM_JOB_END_TIME"])
        start = float(os.environ.get("SLURM_JOB_START_TIME", "-inf"))
    except (KeyError, ValueError):
        return
    margin = min(MARGIN, LARGEST_SHARE * (end - start))
    set_deadline(end - margin - time.time() + time.monotonic() - BEGAN, JOB_END)


def defer_until_met(deferred: bool) -> None:
    """Choose whether this process goes on until `raise_if_any`, since the first process of a run may wait for it."""
    _deferred[0] = deferred


def raise_if_requested(kept: str = "") -> None:
    """Stop this process if that is requested: between stages, and in loops that only one process runs.

    Args:
        kept: what was saved, as for `Stopped`.

    Raises:
        Stopped: a signal has come, or a time limit has passed.
    """
    if requested() and not _deferred[0]:
        raise Stopped(kept)


def raise_if_any(strategy: Any, kept: str = "") -> None:
    """Stop all ranks if that is requested of one; all of them call this at the same place.

    Args:
        strategy: Lightning's, by which ranks agree.
        kept: what was saved, as for `Stopped`.

    Raises:
        Stopped: on every rank.
    """
    defer_until_met(False)
    if strategy.reduce_boolean_decision(requested(), all=False):
        release_ranks()
        raise Stopped(kept)


def release_ranks() -> None:
    """Let ranks that Lightning has started end one after the other: it would kill the others when the first ends."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]


def disable_lightning_handlers(trainer: Any) -> None:
    """Keep Lightning from registering signal handlers, and pass signals on to the ranks that it starts.

    Its handler of SIGTERM calls collectives within the handler, and hangs with several ranks; that of SIGUSR1 saves in
    the middle of a step.
    """
    trainer._signal_connector.register_signal_handlers = register_nothing
    environment = trainer._accelerator_connector.cluster_environment
    if hasattr(environment, "auto_requeue"):
        environment.auto_requeue = False
    pass_signals_on(trainer.strategy)


def pass_signals_on(strategy: Any) -> None:
    """Let the processes that a strategy of Lightning starts have the signals that come to this one."""
    launcher = strategy.launcher

    def pass_on(number: int) -> None:
        for process in getattr(launcher, "procs", ()):  # other launchers start no processes of their own
            process.send_signal(number)

    signals.passes_on[:] = [pass_on]


def register_nothing() -> None:
    """Take the place of Lightning's registration of handlers."""
