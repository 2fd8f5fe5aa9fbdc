"""`submit`: sends a command of this package to a Slurm cluster, after the checks that need no weights."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dpo_lightning.commands.job_scripts import (
    JOBS,
    Site,
    by_hand,
    create_script,
    make_command,
    read_site,
    send,
    write_script,
)
from dpo_lightning.commands.submit_options import RANKED, SHARED, SINGLE, check_options, check_time, make_parser, split
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.log import logger


@dataclass(frozen=True)
class Plan:
    """What is sent.

    Attributes:
        name: of the job and its script.
        settled: options of sbatch without their dashes, and their values.
        arguments: the command and its options.
        more: further options of sbatch.
    """

    name: str
    settled: dict[str, str]
    arguments: list[str]
    more: Sequence[str] = ()


def main(argv: list[str]) -> int:
    """Check a command, send it, and return the exit code."""
    own, rest = split(argv)
    options = make_parser().parse_args(own)
    check_options(options, rest)
    site = read_site(options.site)
    plan = make_plan(options, site, rest)
    if plan is None:
        return 0
    text = write_script(site, plan.settled, plan.more, plan.arguments, chained=options.chain > 1)
    if options.dry_run:
        path = JOBS / f"{plan.name}.sh"
        print(text)
        print(f"# it would be written to {path}, and sent by: {by_hand(site, make_command(path, plan.more))}")
        return 0
    send_all(site, plan, create_script(plan.name, text), options.chain)
    return 0


def make_plan(options: argparse.Namespace, site: Site, rest: Sequence[str]) -> Plan | None:
    """Check the command and return what is to be sent; None if its run is finished."""
    check_time(options, site)
    # The checks look for models and sets of a hub where the job does; libraries read this when they are imported.
    os.environ.update({name: value for name, value in site.environment.items() if name.startswith("HF_")})
    from dpo_lightning.commands.submit_checks import check

    command, arguments = rest[0], list(rest[1:])
    gpus = options.gpus if options.gpus is not None else (1 if options.nodes == 1 else site.gpus)
    if gpus > site.gpus:
        what = Problem(f"a node has {site.gpus} GPUs", "--gpus", str(gpus))
        raise UserError(ExitCode.CONFIG, what, fix=f"--gpus {site.gpus}, or GPUS_PER_NODE in {site.file}")
    if command == "sweep" and gpus > 1 and options.array:
        what = Problem("a point of a sweep is trained on one GPU", "--gpus", str(gpus))
        raise UserError(
            ExitCode.CONFIG, what, fix="--gpus 1 with --array, or without --array: --jobs for points at a time"
        )
    processes = 1 if command in SINGLE else (gpus or options.processes or 1)
    if command in SHARED:
        arguments = remove_option(arguments, SHARED[command])
    checked = check(command, arguments, options.nodes, processes, gpus)
    if checked.finished:
        return None
    if command in RANKED:
        arguments += [f"--trainer.num_nodes={options.nodes}", f"--trainer.devices={processes}"]
    if command == "sweep" and gpus > 1:
        arguments += [] if any(word.partition("=")[0] == "--jobs" for word in arguments) else [f"--jobs={gpus}"]
    settled = {"nodes": str(options.nodes), "ntasks-per-node": str(processes)}
    settled |= {"gpus-per-node": str(gpus)} if gpus else {}
    settled |= {"time": options.time} if options.time else {}
    if options.array and command == "sweep" and not checked.points:
        raise UserError(
            ExitCode.CONFIG, Problem("Optuna chooses points one after the other", "--array"), fix="--gpus N"
        )
    if options.array:
        settled["array"] = parse_array(options.array, checked.points)
        arguments += [f"{SHARED[command]}=auto"]
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', options.name or checked.name).lstrip('.-') or command}-{stamp}"
    number = "%A_%a" if options.array else "%j"
    settled |= {"job-name": name, "output": f"{JOBS}/{name}-{number}.log"}
    return Plan(name, settled, [command, *arguments], options.sbatch)


def remove_option(arguments: Sequence[str], name: str) -> list[str]:
    """Remove an option with the value `auto`, which is added where there is an array."""
    following = iter(arguments)
    kept = []
    for word in following:
        if word == f"{name}=auto":
            continue
        if word == name and (value := next(following, "")) != "auto":
            kept += [word, value]
        elif word != name:
            kept.append(word)
    return kept


def parse_array(text: str, points: int) -> str:
    """Return the elements of an array for sbatch, such as `1-5` or `1-5%2`.

    Args:
        text: their number, also with `%M`; or the manifest of a sweep, which has that many points.
        points: of the sweep that is sent; 0 if it is none.

    Raises:
        UserError: 64, it is none of these, or another number than that of the points.
    """
    match = re.fullmatch(r"(\d{1,6})(%\d{1,6})?", text)
    if match:
        count, limit = int(match[1]), match[2] or ""
    else:
        from dpo_lightning.sweeps.manifest import FILE, Manifest

        path = Path(text)
        count, limit = len(Manifest.read(path / FILE if path.is_dir() else path).points), ""
    if count < 1 or (points and count != points):
        what = Problem(
            f"expected {points or '1 or more'}: the sweep has as many points" if points else "expected 1 or more",
            "--array",
            text,
        )
        raise UserError(ExitCode.CONFIG, what, fix=f"--array {points or 8}")
    return f"1-{count}{limit}"


def send_all(site: Site, plan: Plan, script: Path, chain: int) -> None:
    """Send a job, or a chain of them, and log what was sent and how to watch it."""
    settled = plan.settled
    logger.info(f"script: {script}")
    logger.info(f"runs: {shlex.join([*site.runner, *plan.arguments])}")
    jobs: list[str] = []
    try:
        for _ in range(chain):
            # After all of those before: a job that was cancelled since its predecessor was done is no success itself.
            after = [f"--dependency=afternotok:{':'.join(jobs)}", "--kill-on-invalid-dep=yes"] if jobs else []
            jobs.append(send(site, script, settled, [*plan.more, *after]))
    finally:
        if jobs:
            describe(plan, jobs)


def describe(plan: Plan, jobs: Sequence[str]) -> None:
    """Log the numbers of jobs, and the commands to watch and to stop them."""
    settled, numbers = plan.settled, " ".join(jobs)
    gpus = f", {settled['gpus-per-node']} GPUs on each" if "gpus-per-node" in settled else ""
    array = f", array {settled['array']}" if "array" in settled else ""
    logger.info(
        f"job{'s' * (len(jobs) > 1)} {numbers}: {settled['nodes']} node{'s' * (settled['nodes'] != '1')}{gpus}{array}"
    )
    if len(jobs) > 1:
        logger.info("each goes on where the one before stopped; those that are not needed are cancelled")
    log = settled["output"].replace("%j", jobs[0]).replace("%A", jobs[0]).replace("%a", "1")
    logger.info(f"watch: squeue --job {','.join(jobs)}; tail -F {log}")
    logger.info(f"stop: scancel {numbers}; the step in progress is saved, and the same command goes on")
