"""Checks of the variables that launchers such as torchrun and srun set, before Lightning reads them on import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

from dpo_lightning.errors import ExitCode, Problem, UserError

RANKS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS"}
VARIABLES = (*RANKS, *RANKS.values(), "NODE_RANK", "GROUP_RANK", "SLURM_LOCALID", "SLURM_NODEID")

LONGEST = 10
"""Characters that no rank and no number of processes has."""

STEP = ("SLURM_STEP_ID", "SLURM_STEPID")
"""Variables that srun sets, and neither sbatch nor salloc."""


def check_environment() -> None:
    """Refuse launcher variables that are no numbers, or with which processes would wait for others for ever.

    Raises:
        UserError: 64, with every such variable.
    """
    ignore_notebook_backend()
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    problems = [
        Problem("this is not a rank or a number of processes", f"the environment's {name}", value)
        for name, value in found.items()
        if not (value.isascii() and value.isdecimal() and len(value) < LONGEST)
        or (name in RANKS.values() and int(value) == 0)
    ]
    for rank, size in RANKS.items():
        # A RANK without a WORLD_SIZE means one process.
        count = found.get(size, "1" if rank == "RANK" else None)
        if not problems and rank in found and count is not None and int(found[rank]) >= int(count):
            problems.append(Problem(f"{rank}={found[rank]} is not below {size}={count}", "the environment"))
    if problems:
        names = " ".join(name for name in found if name in str(problems))
        raise UserError(ExitCode.CONFIG, problems, fix=f"unset {names}, or start the processes by torchrun or srun")
    node = next((name for name in ("NODE_RANK", "GROUP_RANK") if found.get(name, "0") != "0"), None)
    if node and "RANK" not in found and found.get("WORLD_SIZE", "1") == "1":
        what = f"{node}={found[node]}, and WORLD_SIZE names no other process"
        raise UserError(ExitCode.CONFIG, Problem(what, "the environment"), fix=f"unset {node}, or set WORLD_SIZE")
    for problem in check_slurm(int(found.get("SLURM_NTASKS", "1"))):
        raise UserError(ExitCode.CONFIG, problem)


def ignore_notebook_backend() -> None:
    """Unset the backend that a notebook has matplotlib draw with, where it is not installed for this process.

    A kernel sets it for the programs too that it starts, and matplotlib would not be imported.
    """
    scheme, _, name = os.environ.get("MPLBACKEND", "").partition("module://")
    if name and not scheme and find_spec(name.partition(".")[0]) is None:
        del os.environ["MPLBACKEND"]


def check_slurm(tasks: int) -> Iterator[Problem]:
    """Iterate over what is wrong with several tasks of Slurm; Lightning ignores them in interactive jobs."""
    if tasks < 2 or ignores_slurm():
        return
    if not launched_by_srun():
        yield Problem(
            f"SLURM_NTASKS={tasks}, but srun did not start this process: it would wait for {tasks - 1} others",
            "the environment",
            fix="srun python -m dpo_lightning ..., or unset SLURM_NTASKS for one process",
        )
    elif "SLURM_NTASKS_PER_NODE" not in os.environ:
        yield Problem(
            f"SLURM_NTASKS={tasks} without a number of tasks per node",
            "the environment",
            fix="#SBATCH --ntasks-per-node=N and --nodes=N in place of --ntasks",
        )


def ignores_slurm() -> bool:
    """Whether Lightning ignores Slurm: in interactive jobs, and where torchrun has started the process."""
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") or "TORCHELASTIC_RUN_ID" in os.environ


def launched_by_srun() -> bool:
    """Whether srun has started this process, as one of the tasks of a job that is not interactive."""
    return any(name in os.environ for name in STEP) and not ignores_slurm()
