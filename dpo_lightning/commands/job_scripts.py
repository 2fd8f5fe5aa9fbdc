"""Job scripts for Slurm: the facts about a cluster, the script that is sent, and sbatch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_lightning.errors import ExitCode, Problem, UserError

FOLDER = Path(__file__).parents[2] / "containers" / "slurm"
"""Where a checkout has the script of every job, and the facts about a cluster to fill in."""

SITE, SCRIPT = "site.env", "job.sh"
JOBS = Path("outputs/jobs")
"""Where scripts and logs of jobs are written, below the folder from which they are sent."""

READ_SITE = """
source "$0" >&2 || exit
program=$(type -P "${RUNNER[0]}")
printf '%s\\0' "${GPUS_PER_NODE:-}" "$program" "${#RUNNER[@]}" "${RUNNER[@]}"
exec /usr/bin/env -0
"""

SETTLED = {
    "nodes": "",
    "ntasks-per-node": "",
    "gpus-per-node": "SBATCH_GPUS_PER_NODE",
    "time": "SBATCH_TIMELIMIT",
    "array": "SBATCH_ARRAY_INX",
    "job-name": "SBATCH_JOB_NAME",
    "output": "SBATCH_OUTPUT",
}
"""Options of sbatch that a script may settle, and the variable that would win over the script."""

ALWAYS_SETTLED = {"SBATCH_SIGNAL", "SBATCH_OPEN_MODE", "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"}
"""Variables that would win over what every script settles."""

OF_A_JOB = re.compile(r"SLURM_(?!CONF$)|SRUN_|MASTER_(ADDR|PORT)$")
"""Variables of the job in which `submit` runs, such as a shell on a node: `srun` would take them for options."""


@dataclass(frozen=True)
class Site:
    """The facts about a cluster.

    Attributes:
        file: which has them.
        gpus: of a node.
        runner: the words with which a process is started.
        environment: of sbatch, with the variables that the file exports.
    """

    file: Path
    gpus: int
    runner: list[str]
    environment: dict[str, str]


def read_site(named: str | None) -> Site:
    """Read the facts about a cluster, by bash.

    Args:
        named: the file; by default `containers/slurm/site.env` of this folder, or else of the checkout.

    Raises:
        UserError: 66, there is no such file; 64, it does not work, or what starts a process is not there.
    """
    default = Path("containers/slurm") / SITE
    file = Path(named) if named else default if default.exists() else FOLDER / SITE
    fix = f"copy containers/slurm/{SITE} of the project, fill it in, and name it by --site"
    if not file.is_file():
        raise UserError(ExitCode.INPUT_MISSING, Problem("there is no such file", "--site", str(file)), fix=fix)
    file = file.resolve()
    done = subprocess.run(["bash", "-c", READ_SITE, str(file)], capture_output=True, check=False)
    words = done.stdout.decode(errors="surrogateescape").split("\0")
    if done.returncode or len(words) < 4:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(ExitCode.CONFIG, Problem("bash cannot read it", str(file), said[-1] if said else ""), fix=fix)
    gpus, program, count = words[:3]
    runner, variables = words[3 : 3 + int(count)], words[3 + int(count) :]
    problems = []
    if not gpus.isdecimal():
        problems.append(Problem("expected a number of GPUs", f"GPUS_PER_NODE in {file}", gpus))
    if not program:
        problems.append(Problem("there is no such program", f"RUNNER in {file}", shlex.join(runner[:1])))
    images = [word for word in runner if word.endswith(".sif") and not Path(word).is_file()]
    problems += [Problem("there is no such image", f"RUNNER in {file}", image) for image in images]
    if problems:
        raise UserError(ExitCode.CONFIG, problems, fix=f"correct {file}")
    environment = dict(variable.partition("=")[::2] for variable in variables if variable)
    return Site(file, int(gpus), runner, environment)


def read_body() -> str:
    """Return the part of the shipped script that follows the options of sbatch.

    Raises:
        UserError: 66, the package is installed without the project around it.
    """
    path = FOLDER / SCRIPT
    if not path.is_file():
        what = Problem("the script of jobs is part of the project's checkout, and not there", text=str(path))
        raise UserError(
            ExitCode.INPUT_MISSING, what, fix="run the command from a checkout, or sbatch a script of yours"
        )
    return path.read_text(encoding="utf-8").rpartition("\n#SBATCH ")[2].partition("\n")[2]


def write_script(
    site: Site, settled: Mapping[str, str], more: Sequence[str], arguments: Sequence[str], *, chained: bool
) -> str:
    """Return the text of a job's script; it holds all that it runs but the facts about the cluster.

    Args:
        site: the facts.
        settled: options of sbatch without their dashes, and their values.
        more: further options of sbatch.
        arguments: the command of this package and its options.
        chained: whether another job goes on in place of this one, which is not requeued then.
    """
    options = [f"--{name}={value}" for name, value in settled.items()]
    options += ["--signal=B:USR1@300", "--open-mode=append", "--no-requeue" if chained else "--requeue", *more]
    lines = ["#!/bin/bash", f"# Sent by `python -m dpo_lightning submit` from {shlex.quote(str(Path.cwd()))}"]
    lines += [f"#SBATCH {shlex.quote(option)}" for option in options]
    lines += ["", f"SITE_ENV={shlex.quote(str(site.file))}", f"JOB_CHAIN={'yes' if chained else ''}"]
    lines += [f"set -- {shlex.join(arguments)}", read_body()]
    return "\n".join(lines)


def make_command(script: Path, more: Sequence[str]) -> list[str]:
    """Return the call of sbatch; its options win over variables of the site, which win over those in the script."""
    return ["sbatch", "--parsable", *more, str(script)]


def by_hand(site: Site, command: Sequence[str]) -> str:
    """Return a command as it is typed, with the variables of the site."""
    return f"source {shlex.quote(str(site.file))}; {shlex.join(command)}"


def send(site: Site, script: Path, settled: Mapping[str, str], more: Sequence[str] = ()) -> str:
    """Send a script by sbatch, and return the number of the job.

    Args:
        site: the facts about the cluster.
        script: the file.
        settled: options that the script settles: no variable may win over them.
        more: further options.

    Raises:
        UserError: 69, there is no sbatch here; 75, its controller does not answer; 64, sbatch refuses the job.
    """
    hidden = {SETTLED[name] for name in settled} | ALWAYS_SETTLED
    environment = {
        name: value
        for name, value in site.environment.items()
        if name not in hidden and not (OF_A_JOB.match(name) and os.environ.get(name) == value)
    }
    command = make_command(script, more)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        what = Problem("there is no sbatch here", text=shlex.join(command))
        raise UserError(ExitCode.DEVICE, what, fix=f"on a login node: {by_hand(site, command)}") from None
    if done.returncode:
        code = ExitCode.RESUMABLE if re.search(r"[Uu]nable to contact|timed out", done.stderr) else ExitCode.CONFIG
        said = done.stderr.strip().splitlines()
        what = Problem(f"sbatch ended with {done.returncode}", str(script), said[-1] if said else "")
        raise UserError(
            code,
            what,
            fix=f"correct the options of submit or {site.file}; or {script} itself: {by_hand(site, command)}",
        )
    return done.stdout.strip().partition(";")[0]


def create_script(name: str, text: str) -> Path:
    """Write a script under a name that no file has, and return its path.

    Raises:
        UserError: 73, it cannot be written.
    """
    path = JOBS / f"{name}.sh"
    try:
        JOBS.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        what = Problem(f"the script cannot be written: {error.strerror}", text=str(path))
        raise UserError(ExitCode.OUTPUT, what, fix="another --name, or another folder to submit from") from None
    return path
