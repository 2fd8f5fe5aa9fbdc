"""A script in two processes, joined by gloo."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def free_port() -> int:
    """A port of this machine that nothing uses, below those that the system gives to others meanwhile."""
    while True:
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_on_two_ranks(script: str | None, model: Any, folder: Path) -> Any:
    """What a script leaves in `two.pt` of a folder.

    Args:
        script: path of a Python file, called with the model's folder, the shared folder and its rank.
        model: the model's folder.
        folder: the shared folder.
    """
    port = free_port()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = [  # lightning starts no second process where LOCAL_RANK is set
        subprocess.Popen(
            [sys.executable, str(script), str(model), str(folder), str(rank)],
            env={**env, "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=550)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return torch.load(folder / "two.pt")
