"""Processes of one run that are killed, stopped or missing: the others end, name them, and leave nothing half-made."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from support.two_ranks import free_port

from dpo_lightning import ranks
from dpo_lightning.data.watched_loader import describe_process
from dpo_lightning.errors import ExitCode, UserError
from dpo_lightning.ranks import (
    TIME_LIMIT,
    check_rendezvous,
    describe_lost,
    limit_waiting,
    port_held,
    translate_rank_error,
)

SECONDS = 60
"""The time limit where both ranks run, which a loaded machine needs to start them."""

MAIN = """
import sys
from datetime import timedelta
from dpo_lightning import ranks
ranks.TIME_LIMIT = timedelta(seconds=float(sys.argv.pop(1)))
ranks.ANSWER_SECONDS = 3.0
from dpo_lightning.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def running(bench, *numbers, port=None, seconds=SECONDS):
    """Some of the two ranks of a long run; they are killed in the end."""
    port = port or free_port()
    script = bench.folder / "main.py"
    script.write_text(MAIN)
    options = [*bench.options(), "--data.batch_size=1", "--trainer.accumulate_grad_batches=1", "--data.cache=none"]
    options += ["--trainer.max_epochs=5000", "--trainer.devices=2", "--trainer.strategy=ddp"]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    variables |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(seconds), "fit", *map(str, options)],
            env={**os.environ, **variables, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in numbers
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def wait_for_steps(process):
    """Read the output of rank 0 until it trains."""
    for line in process.stdout:
        if line.startswith("training: step"):
            return
    raise AssertionError(process.stderr.read())


def ended(process):
    """Exit code and errors of a process."""
    process.wait(timeout=400)
    return process.returncode, process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "state"), [(signal.SIGKILL, "has ended"), (signal.SIGSTOP, "is stopped")], ids=["killed", "stopped"]
)
def test_a_rank_that_is_lost_ends_the_other_one(sent, state, bench):
    with running(bench, 0, 1) as (first, second):
        wait_for_steps(first)
        second.send_signal(sent)
        code, told = ended(first)
        assert code == ExitCode.IO, told
        assert f"rank 1 (process {second.pid} on {socket.gethostname()}) {state}" in told
        assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_ends_the_other_one_before_it_makes_a_folder(rank, bench):
    with running(bench, rank, seconds=3) as (process,):
        code, told = ended(process)
    assert code == ExitCode.IO, told
    assert "rank 0 did not open" in told if rank else "is missing" in told
    assert not (bench.folder / "run").exists()


@pytest.mark.slow
def test_a_port_in_use_ends_both_ranks(bench):
    """Though it accepts connections, and torch would wait for its answer for ever."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with running(bench, 0, 1, port=other.getsockname()[1]) as processes:
            for process in processes:
                code, told = ended(process)
                assert code == ExitCode.DEVICE, told
                assert "MASTER_PORT" in told
    assert not (bench.folder / "run").exists()


def test_nothing_that_listens_is_waited_for_within_the_limit():
    with pytest.raises(UserError, match="did not open") as raised:
        check_rendezvous("127.0.0.1", free_port(), 2, timedelta(seconds=0.3))
    assert raised.value.code == ExitCode.IO


def test_a_rank_that_waits_for_the_first_one_can_be_stopped(monkeypatch):
    monkeypatch.setattr(ranks, "requested", lambda: True)
    with pytest.raises(UserError) as raised:
        check_rendezvous("127.0.0.1", free_port(), 2, TIME_LIMIT)
    assert raised.value.code == ExitCode.RESUMABLE


def test_lost_processes_are_named():
    """Those that have ended before those that are stopped; else all that may be the cause."""
    host = socket.gethostname()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    peers = [(host, os.getpid()), (host, child.pid), ("elsewhere", 1)]
    try:
        assert describe_lost(peers) == [
            f"rank 1 (process {child.pid} on {host}) or rank 2 (process 1 on elsewhere) does not answer"
        ]
        child.send_signal(signal.SIGSTOP)
        while describe_process(child.pid) != "is stopped":
            time.sleep(0.01)
        assert describe_lost(peers) == [f"rank 1 (process {child.pid} on {host}) is stopped"]
    finally:
        child.kill()
        child.wait()
    assert describe_lost(peers) == [f"rank 1 (process {child.pid} on {host}) has ended"]
    assert describe_lost([]) == []


def test_the_port_that_lightning_chose_is_kept_until_the_processes_meet(monkeypatch):
    """From other programs, and from connections to it, which may begin at the port itself; not from the rendezvous."""
    monkeypatch.delenv("MASTER_PORT", raising=False)
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * 2, cluster_environment=LightningEnvironment())
    with port_held(strategy):
        port = strategy.cluster_environment.main_port
        for address in ("", "127.0.0.1"):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((address, port))
        store = dist.TCPStore("127.0.0.1", port, 1, True, timedelta(seconds=20), wait_for_workers=False)
        del store


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_port_in_use_is_found_before_a_process_is_started(rank, monkeypatch):
    """Where it is this machine's: the first one of several that are started by hand has the port."""
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * 2, cluster_environment=LightningEnvironment())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        monkeypatch.setenv("NODE_RANK", rank)
        refused = pytest.raises(UserError, match="another program uses") if rank == "0" else nullcontext()
        with refused, port_held(strategy):
            pass


class DistBackendError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), 74),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1000ms for recv"), 74),
        (DistBackendError("NCCL error in: remote process exited"), 74),
        (RuntimeError("The server socket has failed to listen: code: -98, name: EADDRINUSE"), 69),
        (RuntimeError("Connection reset by peer"), None),
    ],
    ids=str,
)
def test_errors_of_collective_operations_are_translated(error, code):
    known = translate_rank_error(error)
    assert (known and known.code) == code


def test_a_time_limit_of_the_config_is_kept():
    ours, given = DDPStrategy(), DDPStrategy(timeout=timedelta(hours=3))
    for strategy in (ours, given, SingleDeviceStrategy()):
        limit_waiting(strategy)
    assert (ours._timeout, given._timeout) == (TIME_LIMIT, timedelta(hours=3))
