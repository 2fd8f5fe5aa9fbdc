"""Options of `submit`, and which of them fit together and to the command that is sent."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from dpo_lightning.commands.job_scripts import Site
from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.errors import ExitCode, Problem, UserError

RANKED = ("fit", "precompute", "validate", "test", "predict")
"""Commands with one process for each device."""

SINGLE = ("evaluate", "sweep")
SHARED = {"sweep": "--point", "precompute": "--shard"}
"""Commands that take their share from an array, and the option for that."""

OWN = (
    *("--time", "-t", "--array", "-a", "--nodes", "-N", "--job-name", "-J", "--output", "-o"),
    *("--ntasks", "-n", "--ntasks-per-node", "--requeue", "--no-requeue"),
)
"""Options of sbatch that `submit` sets."""

LEAST_MINUTES = 10
"""A time limit of no more leaves a job too little before it stops."""

DESCRIPTION = "Sends a command of this package to a Slurm cluster, after the checks that need no weights."
EXAMPLE = "python -m dpo_lightning submit --gpus 1 -- fit --config configs/dpo.yaml --output_dir outputs/dpo"
EPILOG = f"What follows -- is a command of this package with its options: {EXAMPLE}"


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command's own options."""
    options = RaisingArgumentParser(
        "python -m dpo_lightning submit",
        usage="python -m dpo_lightning submit [options] -- COMMAND [options of COMMAND]",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("--site", metavar="FILE", help="facts about the cluster; default: containers/slurm/site.env")
    add("--nodes", type=int, default=1, metavar="N", help="number of nodes (1)")
    add(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs of each node, with a process for each; default: 1, or all of several",
    )
    add("--processes", type=int, metavar="N", help="processes on each node, where there are no GPUs (--gpus 0)")
    add("--time", metavar="T", help="time limit, as sbatch takes it: 12:00:00, 2-00")
    add(
        "--array",
        metavar="N|FILE",
        help="N jobs that share the work, at most M at a time with N%%M; or a sweep's manifest",
    )
    add("--chain", type=int, default=1, metavar="N", help="N jobs, each of which goes on where the one before stopped")
    add("--name", metavar="NAME", help="name of the job; default: that of the output folder")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="an option of sbatch: --sbatch=--qos=long")
    add("--dry-run", "--dry_run", action="store_true", help="print the script and the command; send nothing")
    return options


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments at the first `--`."""
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def check_options(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Refuse options that do not fit together or to the command.

    Raises:
        UserError: 64, as described.
    """
    problems = []
    command = rest[0] if rest else ""
    if command not in (*RANKED, *SINGLE):
        what = "expected a command that stops and goes on" if command else "there is no command after --"
        problems.append(Problem(f"{what}: {', '.join((*RANKED, *SINGLE))}", text=command))
    least = {"--nodes": options.nodes, "--chain": options.chain, "--processes": options.processes}
    problems += [
        Problem("expected 1 or more", key, str(value))
        for key, value in least.items()
        if value is not None and value < 1
    ]
    if options.gpus is not None and options.gpus < 0:
        problems.append(Problem("expected 0 or more", "--gpus", str(options.gpus)))
    if options.processes is not None and options.gpus != 0:
        problems.append(Problem("there is a process for each GPU", "--processes", fix="add --gpus 0, or leave it out"))
    if command in SINGLE and (options.nodes > 1 or (options.processes or 1) > 1):
        problems.append(Problem(f"{command} is one process on one node", "--nodes, --processes"))
    if options.array and command not in SHARED:
        problems.append(Problem(f"the jobs of an array would all do the same: {command} takes no share", "--array"))
    if options.array and options.chain > 1:
        problems.append(Problem("a chain is of single jobs", "--array, --chain"))
    texts = [*options.sbatch, options.time or "", options.name or ""]
    problems += [Problem("unprintable characters", text=text) for text in texts if not text.isprintable()]
    problems += [Problem("not an option of sbatch", "--sbatch", text) for text in options.sbatch if text[:1] != "-"]
    problems += [Problem("submit sets this", "--sbatch", text) for text in options.sbatch if is_own(text)]
    if command in ("fit", "evaluate") and "--fresh" in rest:
        what = "the job would begin anew whenever it is requeued"
        problems.append(Problem(what, "--fresh", fix="another folder for the output, or rename the old one before"))
    if problems:
        raise UserError(ExitCode.CONFIG, problems, fix=EXAMPLE)


def is_own(text: str) -> bool:
    """Whether an option of sbatch is one that `submit` sets."""
    return text.partition("=")[0] in OWN or text[:2] in OWN  # a short one may stand before its value: -t60


def check_time(options: argparse.Namespace, site: Site) -> None:
    """Check the time limit of the job; a job stops five minutes before it.

    Raises:
        UserError: 64, it is no time, or leaves a job too little.
    """
    key = "--time" if options.time else f"SBATCH_TIMELIMIT in {site.file}"
    limit = options.time or site.environment.get("SBATCH_TIMELIMIT")
    if not limit:
        return
    fix = "--time 12:00:00, or 2-00 for two days"
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not match:
        raise UserError(ExitCode.CONFIG, Problem("not a time", key, limit), fix=fix)
    days, first, second, third = (int(part or 0) for part in match.groups())
    in_hours = match[1] is not None or match[4] is not None
    minutes = days * 1440 + (first * 60 + second + third / 60 if in_hours else first + second / 60)
    if minutes > LEAST_MINUTES or any(word.startswith("--signal") for word in options.sbatch):
        return
    what = Problem("a job stops 5 minutes before its end: little or nothing is left", key, limit)
    raise UserError(ExitCode.CONFIG, what, fix=fix)
