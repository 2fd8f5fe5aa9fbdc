"""`submit` without Slurm: programs in its place that write down their calls, and the scripts that are sent."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import run

SBATCH = """#!/bin/sh
number=$(($(cat number 2>/dev/null || echo 40) + 1))
echo $number > number
printf '%s\\n' "$*" >> calls
env | grep -E '^(SBATCH|SLURM|SRUN|MASTER)_' >> variables
echo "$number;cluster"
"""

SRUN = """#!/bin/bash
printf '%s\\0' "$@" > words
exit "${CODE:-0}"
"""


@pytest.fixture
def slurm(bench, monkeypatch):
    """A folder with facts about a cluster of nodes with two GPUs, and programs in place of Slurm's."""
    programs = bench.folder / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SRUN), ("scancel", SRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    facts = f"RUNNER=({shlex.quote(sys.executable)} -m dpo_lightning)\nGPUS_PER_NODE=2\nCACHES=caches\nREQUEUES=3\n"
    bench.site = bench.folder / "site.env"
    bench.site.write_text(f"{facts}export SBATCH_ACCOUNT=mine SBATCH_TIMELIMIT=60 SBATCH_REQUEUE=1\n")
    bench.submit = lambda *own, fit=(), out="run": run(
        "submit", "--site", bench.site, *own, "--", "fit", *bench.options(out), *fit
    )
    return bench


def calls(bench):
    return (bench.folder / "calls").read_text().splitlines() if (bench.folder / "calls").exists() else []


def script(bench):
    (path,) = (bench.folder / "outputs/jobs").glob("*.sh")
    return path


def options(text):
    """What a script has for sbatch: name -> value."""
    words = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


def run_script(path, **variables):
    """Run a script as Slurm does, and return its exit code and the words that srun got."""
    environment = {**os.environ, "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node1", **variables}
    done = subprocess.run(["bash", path], env=environment, capture_output=True, text=True, timeout=60)
    words = Path("words").read_text().split("\0")[:-1]
    return done.returncode, words
