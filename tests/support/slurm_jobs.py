"""Jobs of a private Slurm: a folder with models, rows and facts about the cluster, and the shipped job script."""

from __future__ import annotations

import os
import random
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from support.command_line import ROOT
from support.disturbed_runs import RECIPES, make_command, save_models, start
from support.slurm_cluster import Cluster
from support.two_ranks import free_port

SCRIPT = ROOT / "containers" / "slurm" / "job.sh"
SITE = ROOT / "containers" / "slurm" / "site.env"

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
ON_TWO_NODES = ("--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp", "--data.batch_size=2")
LONGEST = 300.0
"""Seconds after which a job hangs."""

SLOWLY = """
import os, time
from lightning.pytorch import Callback

class Slowly(Callback):
    def on_train_start(self, trainer, *args):
        pause = os.environ.get("PAUSE", "0")
        self.pause = float(pause if trainer.global_step == 0 else os.environ.get("PAUSE_RESUMED", pause))

    def on_train_batch_end(self, *args):
        time.sleep(self.pause)
"""

EXITED = re.compile(r"srun: error: node\d: tasks? ([\d,-]+): Exited with exit code (\d+)")


class Job(NamedTuple):
    """A job, and the file of what it prints."""

    number: str
    log: Path

    def printed(self, begin: int = 0) -> str:
        """Return what it has printed, from a place on."""
        return self.log.read_text(errors="replace")[begin:] if self.log.exists() else ""


class Workplace:
    """A folder in which jobs run, with the facts about the cluster as the shipped file has them."""

    def __init__(self, cluster: Cluster, folder: Path, runner: Sequence[str] = ()) -> None:
        """Write rows, models and facts.

        Args:
            cluster: it runs.
            folder: an empty one.
            runner: how a process is started; this Python by default.
        """
        self.cluster, self.folder = cluster, folder
        self.models = save_models(folder)
        (folder / "slowly.py").write_text(SLOWLY)
        self.site = folder / "site.env"
        words = shlex.join(runner or [sys.executable, "-m", "dpo_lightning"])
        found = folder if runner else f"{folder}:{ROOT}"  # a container has code of its own
        own = f"RUNNER=({words})\nINTERFACE=lo\nexport PYTHONPATH={found}\nexport OMP_NUM_THREADS=1\n"
        self.site.write_text(SITE.read_text() + own)

    def fit(self, recipe: str, out: str, *more: str) -> list[str]:
        """Return the arguments of `fit` for a recipe, with a callback that makes steps slow."""
        command = make_command(RECIPES[recipe], self.folder, self.models, *more, saved=1000)
        slowly = ["--allow-class-path=slowly", "--trainer.callbacks+=slowly.Slowly"]
        return [*command[command.index("fit") :], *slowly, f"--output_dir={out}"]

    def send(self, options: Sequence[str], arguments: Sequence[str], pause: float = 0.0) -> Job:
        """Send the shipped script by sbatch.

        Args:
            options: of sbatch.
            arguments: of the script.
            pause: seconds after each micro-batch, for runs with the callback.
        """
        export = f"--export=ALL,SITE_ENV={self.site},PAUSE={pause}"
        words = ["sbatch", "--parsable", "--output=job-%j.log", export, *options, str(SCRIPT), *arguments]
        number = self.cluster.run(*words, cwd=self.folder).strip()
        return self.job(number)

    def element(self, job: Job, index: int) -> Job:
        """Return an element of an array as a job; one of them has the number of the array."""
        name = f"{job.number}_{index}"
        return self.job(self.cluster.describe(name)["JobId"])._replace(number=name)

    def job(self, number: str) -> Job:
        """Return the job of a number."""
        return Job(number, self.folder / f"job-{number}.log")

    def finish(self, job: Job, seconds: float = LONGEST) -> dict[str, str]:
        """Wait for the end of a job, which has to be that of a whole run."""
        found = self.cluster.wait_for_end(job.number, seconds)
        assert found["JobState"] == "COMPLETED", f"{found}\n{job.printed()[-3000:]}"
        return found

    def signal_step(self, job: Job, number: str = "USR1") -> None:
        """Send a signal to all ranks of a job, as a person may."""
        self.cluster.run("scancel", f"--signal={number}", job.number)

    def wait_for(self, job: Job, text: str, begin: int = 0) -> None:
        """Wait until a job has printed a text, from a place on."""
        self.cluster.wait_for_text(job.log, text, LONGEST, begin)

    def wait_for_attempt(self, job: Job) -> None:
        """Wait until a job that has requeued itself runs again."""
        place = job.printed().rfind("requeued to go on")
        self.wait_for(job, "attempt ", place)

    def disturb(self, job: Job, draw: random.Random, longest: float, after: str = "data: ") -> str:
        """Signal all ranks of a job at a random moment of its attempt, and wait until it has requeued itself.

        Args:
            job: its attempt has just begun.
            draw: random numbers.
            longest: seconds until the latest signal.
            after: what the attempt prints before.

        Returns:
            What is wrong then; empty if nothing is. `late` if the run had ended before.
        """
        begin = len(job.printed().rpartition("job ")[0])
        self.wait_for(job, after, begin)
        time.sleep(draw.uniform(0, longest))
        ranks = find_ranks(self.folder)

        def has_ended() -> bool:
            ended = self.cluster.describe(job.number)["JobState"] == "COMPLETED"
            return ended or "requeued to go on" in job.printed(begin)

        if not has_ended():
            self.signal_step(job)
        self.cluster.wait(has_ended, LONGEST, "the end of an attempt", job.log)
        if "requeued to go on" not in job.printed(begin):
            return "late"
        codes = exit_codes(job.printed(begin))
        if codes != {0: 75, 1: 75}:
            return f"exit codes {codes}"
        if orphans := sorted(set(find_ranks(self.folder)) & set(ranks)):
            return f"processes {orphans} are left"
        return "a traceback" if "Traceback" in job.printed(begin) else ""


def run_here(workplace: Workplace, arguments: Sequence[str], log: str, ranks: int = 1) -> None:
    """Run a command without Slurm, each rank started as srun does."""
    program = [sys.executable, "-m", "dpo_lightning", *arguments]
    paths = {"PYTHONPATH": f"{ROOT}:{workplace.folder}"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    environments = (
        [paths] if ranks == 1 else [paths | meeting | {"LOCAL_RANK": str(i), "NODE_RANK": "0"} for i in range(ranks)]
    )
    path = workplace.folder / log
    started = [start(program, path, environment) for environment in environments]
    assert [each.wait(2 * LONGEST) for each in started] == [0] * ranks, path.read_text()[-3000:]


def exit_codes(printed: str) -> dict[int, int]:
    """Return the exit code of each rank that srun has reported: rank -> code."""
    found = {}
    for ranks, code in EXITED.findall(printed):
        for part in ranks.split(","):
            first, _, last = part.partition("-")
            found |= {rank: int(code) for rank in range(int(first), int(last or first) + 1)}
    return found


def find_ranks(folder: Path) -> list[int]:
    """Return the processes of the program that run in a folder."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and (path / "cwd").readlink() == folder:
                command = (path / "cmdline").read_bytes()
                found += [int(path.name)] if b"dpo_lightning\0" in command and int(path.name) != os.getpid() else []
        except OSError:
            continue  # it has ended
    return found
