"""Processes of one run: they meet before anything is written, and none waits for another one for ever."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ParallelStrategy

from dpo_lightning.data.watched_loader import describe_process
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger
from dpo_lightning.stopping import Stopped, release_ranks, requested

TIME_LIMIT = timedelta(minutes=15)
"""The longest that a process waits for another one: rank 0 alone writes the final model in this time."""

ANSWER_SECONDS = 20.0
"""The longest that a rendezvous takes to answer once it accepts connections."""

LOST = re.compile(r"gloo/transport|NCCL|ncclSystemError|Gloo connectFullMesh|\[Rank \d+\]")
"""What errors of a collective operation contain."""

PEERS: list[tuple[str, int]] = []
"""Host and process id of each rank of this run, once they have met."""


class RankLimits(Callback):
    """Records which processes take part, so that an error can name the one that is missing."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Exchange host names and process ids, once."""
        if trainer.world_size > 1 and not PEERS and dist.is_initialized():
            found: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(found, (socket.gethostname(), os.getpid()))
            PEERS.extend(found)
            release_ranks()  # a rank that is lost is found, and named, where the others wait for it


def limit_waiting(strategy: Any) -> None:
    """Set the time limit of a strategy that has Lightning's, which is half an hour."""
    if getattr(strategy, "_timeout", None) == default_pg_timeout:
        strategy._timeout = TIME_LIMIT


@contextmanager
def port_held(strategy: Any) -> Iterator[None]:
    """Keep other programs from the port at which the processes that Lightning starts will meet.

    Lightning chooses a free port, and listens at it seconds later: meanwhile another program could take it, and so
    could the connections of a process that waits for the first one. The socket here is bound and does not listen,
    which lets the rendezvous of the same process listen at the port.

    Raises:
        UserError: 69, another program uses the port that MASTER_PORT names.
    """
    environment: Any = getattr(strategy, "cluster_environment", None)
    alone = environment is None or strategy.num_processes * strategy.num_nodes == 1
    if alone or environment.creates_processes_externally or environment.node_rank() > 0:
        yield
        return
    port = environment.main_port
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("", port))
        except OSError as error:
            raise port_error(f"{port} ({error.strerror})") from None
        yield


def meet(trainer: Trainer) -> None:
    """Wait for the other processes, if a launcher starts them: those that Lightning starts do not run yet.

    Raises:
        UserError: 69, another program listens on the port; 74, processes are missing.
    """
    strategy: Any = trainer.strategy
    if trainer.world_size == 1 or not isinstance(strategy, ParallelStrategy):
        return
    environment: Any = strategy.cluster_environment
    if not environment.creates_processes_externally:
        return
    address, port = environment.main_address, environment.main_port
    logger.info(f"ranks: {trainer.world_size} processes meet at {address}:{port}, within {TIME_LIMIT}")
    if environment.global_rank() > 0:
        check_rendezvous(address, port, trainer.world_size, TIME_LIMIT)
    strategy.setup_environment()


def check_rendezvous(address: str, port: int, count: int, limit: timedelta) -> None:
    """Check that what listens on the port is the rendezvous of rank 0: torch waits for ever for another program.

    Raises:
        UserError: 69, it is not; 74, nothing listens within the limit; 75, this process is to stop.
    """
    end = time.monotonic() + limit.total_seconds()
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            break
        except OSError as error:
            if time.monotonic() > end:
                what = f"rank 0 did not open {address}:{port} within {limit} ({error})"
                raise UserError(ExitCode.IO, what, fix="look at the messages of rank 0, and start all ranks") from None
            if requested():
                raise Stopped from None
            time.sleep(0.2)
    answers: list[Any] = []

    def connect() -> None:
        patience = timedelta(seconds=ANSWER_SECONDS)
        try:
            answers.append(dist.TCPStore(address, port, count, False, patience, wait_for_workers=False))
        except RuntimeError as error:
            answers.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not answers or isinstance(answers[0], RuntimeError):
        raise port_error(f"{address}:{port}")


def port_error(where: str) -> UserError:
    """Make the error for a port that another program uses."""
    what = "another program uses the port at which the processes meet"
    return UserError(ExitCode.DEVICE, Problem(what, "MASTER_PORT", where), fix="set MASTER_PORT to a free port")


def translate_rank_error(error: BaseException) -> UserError | None:
    """Translate an error of torch's collective operations into one that names the process that is missing."""
    text = " ".join(str(error).split())
    if "EADDRINUSE" in text:
        return port_error(text)
    kind = type(error).__name__
    if kind not in ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError") and not LOST.search(text):
        return None
    lost = describe_lost(PEERS)
    what = f"{', '.join(lost)}: this process cannot go on alone" if lost else "another process of the run is missing"
    return UserError(
        ExitCode.IO,
        Problem(what, "trainer.devices", text),
        fix="look at the messages of the other processes, then start all of them again",
    )


def describe_lost(peers: list[tuple[str, int]]) -> list[str]:
    """Describe the ranks on this host that have ended, are stopped or do not answer, in this order."""
    states = [
        (describe_process(pid), f"rank {rank} (process {pid} on {host})")
        for rank, (host, pid) in enumerate(peers)
        if host == socket.gethostname() and pid != os.getpid()
    ]
    for wanted in ("has ended", "is stopped"):
        found = [f"{name} {state}" for state, name in states if state == wanted]
        if found:
            return found
    others = [f"rank {rank} (process {pid} on {host})" for rank, (host, pid) in enumerate(peers) if pid != os.getpid()]
    return [f"{' or '.join(others)} does not answer"] if others else []
