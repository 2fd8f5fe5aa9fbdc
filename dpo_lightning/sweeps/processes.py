"""Child processes: in groups of their own, with a log, a share of the machine, and an end when their parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dpo_lightning.stopping import requested

PR_SET_PDEATHSIG = 1
"""The option of Linux's `prctl` that has a signal sent to a process when its parent ends."""

GRACE = 10.0
"""Seconds between the request to stop and the end by force."""

POLL = 0.2
REPORT_EVERY = 30.0
"""Seconds between lines about a command that is still running."""

TAIL = 1 << 14
"""Bytes at the end of a log in which its last line is looked for."""


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command that appends to a log, and that does not outlive this process, however it ends."""
    library, parent = ctypes.CDLL(None), os.getpid()

    def follow_parent() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"\n$ {subprocess.list2cmdline(command)}\n".encode())
        file.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=follow_parent,  # noqa: PLW1509 - this process has no other threads that hold locks
        )


def follow(process: subprocess.Popen[bytes], report: Callable[[], None] = lambda: None) -> int:
    """Wait until a process ends, and return its exit code; if this one is to stop, so is that one.

    Args:
        process: which is ended if the wait is.
        report: is called every `REPORT_EVERY` seconds.
    """
    reported, passed_on = time.monotonic(), False
    try:
        while (code := process.poll()) is None:
            time.sleep(POLL)
            if requested() and not passed_on:
                passed_on = True
                send(process, signal.SIGTERM)
            if time.monotonic() - reported >= REPORT_EVERY:
                reported = time.monotonic()
                report()
    finally:
        stop([process])
    return code


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End processes and all that they have started, at once where this one was told to stop before."""
    left = list(processes)
    for process in left:
        send(process, signal.SIGTERM)
    deadline = time.monotonic() + (0.0 if requested() else GRACE)
    for process in left:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        send(process, signal.SIGKILL)
        process.wait()


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM within the block."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def slot_environment(slot: int, jobs: int) -> dict[str, str]:
    """Return the environment of one of `jobs` processes: a GPU of its own, or its share of the processors."""
    environment = dict(os.environ)
    devices = visible_devices() if jobs > 1 else []
    if len(devices) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    elif jobs > 1 and not devices:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    return environment


def visible_devices() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` lists them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def last_line(log: Path, *, error: bool = False) -> str:
    """Return the last line of a log; with `error`, the first of the last error, where there is one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    # A bar of a terminal is rewritten after carriage returns; `$` begins the command itself.
    lines = [line.rpartition("\r")[2].strip() for line in text.rpartition("\n$ ")[2].splitlines()[1:]]
    lines = [line for line in lines if line]
    errors = [line for line in lines if line.startswith("error: ")] if error else []
    return (errors or lines or [""])[-1]
