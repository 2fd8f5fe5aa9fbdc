"""Whole runs by the shipped job script: stopped, preempted, out of time, in arrays; they come to the same weights."""

import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import ROOT
from support.disturbed_runs import LONGEST, TWO_RANKS
from support.run_results import find_difference, read_run
from support.slurm_jobs import ON_TWO_NODES, TWO_NODES, Workplace, exit_codes, run_here

pytestmark = pytest.mark.timeout(1800)

PROGRAM = ("python", "-m", "dpo_lightning")
PAUSE = 0.5
"""Seconds after each of 16 steps."""


@pytest.fixture(scope="module")
def whole(workplace):
    """A run of two ranks that is left alone, without Slurm."""
    run_here(workplace, workplace.fit("dpo", "whole", *TWO_RANKS), "whole.log", ranks=2)
    return read_run(workplace.folder / "whole")


def test_a_job_on_two_nodes_that_is_stopped_and_preempted(workplace, whole):
    """By a signal in training, by one at any moment, and by a job of higher priority that takes both nodes."""
    job, draw = workplace.send(TWO_NODES, workplace.fit("dpo", "disturbed", *ON_TWO_NODES), PAUSE), random.Random(0)
    for after, longest in (("self-check: passed", 3.0), ("data: ", 8.0)):
        assert workplace.disturb(job, draw, longest, after) == "", job.printed()[-3000:]
        workplace.wait_for_attempt(job)
    begin = len(job.printed().rpartition("job ")[0])
    workplace.wait_for(job, "self-check: ", begin)
    both = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    urgent = workplace.cluster.run("sbatch", "--parsable", *both).strip()
    workplace.wait_for(job, "requeued to go on", begin)
    assert exit_codes(job.printed(begin)) == {0: 75, 1: 75}
    assert workplace.cluster.wait_for_end(urgent, 120)["JobState"] == "COMPLETED"
    assert workplace.finish(job)["Restarts"] == "3"
    assert job.printed().count("stopped by SIGUSR1: step ") >= 1
    assert find_difference(whole, read_run(workplace.folder / "disturbed")) == ""


def test_a_chain_of_three_whose_first_job_runs_out_of_time(workplace):
    """Sent by `submit`; the next finishes the run, and what is left of the chain is cancelled."""
    run_here(workplace, workplace.fit("sft", "in-one", "--trainer.max_epochs=8"), "in-one.log")
    submit = ["submit", f"--site={workplace.site}", "--chain=3", "--gpus=0", "--time=1", "--sbatch=--signal=B:USR1@20"]
    command = [
        sys.executable,
        "-m",
        "dpo_lightning",
        *submit,
        "--",
        *workplace.fit("sft", "chained", "--trainer.max_epochs=8"),
    ]
    environment = {
        **workplace.cluster.environment,
        "PYTHONPATH": f"{ROOT}:{workplace.folder}",
        "PAUSE": "2",
        "PAUSE_RESUMED": "0",
    }
    sent = subprocess.run(
        command, cwd=workplace.folder, env=environment, capture_output=True, text=True, timeout=LONGEST
    )
    assert sent.returncode == 0, sent.stderr
    numbers = next(line for line in sent.stdout.splitlines() if line.startswith("jobs ")).partition(":")[0].split()[1:]
    found = [workplace.cluster.wait_for_end(number, LONGEST) for number in numbers]
    logs = [Path(workplace.folder, one["StdOut"]) for one in found]
    said = "\n".join([sent.stdout, *(log.read_text() for log in logs if log.exists())])
    states = " ".join(one["JobState"] for one in found)  # on a slow machine the second is stopped as well
    assert states in ("FAILED COMPLETED CANCELLED", "FAILED FAILED COMPLETED"), said
    assert (found[0]["ExitCode"], {one["Restarts"] for one in found}) == ("75:0", {"0"}), said
    assert "stopped by SIGUSR1: step " in logs[0].read_text()
    assert find_difference(read_run(workplace.folder / "in-one"), read_run(workplace.folder / "chained")) == ""


def test_an_array_trains_the_points_of_a_sweep(workplace):
    """One point for each element, the report by the last one."""
    fit = workplace.fit("dpo", "unused", "--trainer.max_epochs=1")
    config = next(word for word in fit if word.startswith("--config="))
    rest = [word for word in fit[1:] if not word.startswith(("--config=", "--output_dir="))]
    over = ["--over", "model.loss.beta", "0.05", "0.5", "--evaluate", "--no_generate", "--judge", "none"]
    sweep = ["sweep", "--config", config.partition("=")[2], *over, "--no_precompute", *rest]
    run_here(workplace, [*sweep, "--output_dir", "alone"], "alone.log")
    job = workplace.send(["--array=1-2"], [*sweep, "--output_dir", "array", "--point", "auto"])
    for i in (1, 2):
        workplace.finish(workplace.element(job, i))
    points = sorted(path.name for path in (workplace.folder / "alone/points").iterdir() if path.is_dir())
    assert len(points) == 2
    for point in points:
        one, other = (
            load_file(workplace.folder / name / "points" / point / "final_model/model.safetensors")
            for name in ("alone", "array")
        )
        assert all(torch.equal(value, other[name]) for name, value in one.items()), point
    assert (workplace.folder / "array/index.html").exists(), shlex.join(sweep)


def test_a_job_in_a_container(cluster, sif, whole, tmp_path_factory):
    """Both ranks run in the SIF, which delivers each signal twice; it has neither scontrol nor scancel."""
    folder = tmp_path_factory.mktemp("contained")
    place = Workplace(cluster, folder, ["apptainer", "exec", "--bind", f"{ROOT}:{ROOT}:ro", str(sif), *PROGRAM])
    job = place.send(TWO_NODES, place.fit("dpo", "contained", *ON_TWO_NODES), PAUSE)
    assert place.disturb(job, random.Random(1), 3.0, "self-check: passed") == "", job.printed()[-3000:]
    assert "stopped by SIGUSR1: step " in job.printed()
    assert place.finish(job)["Restarts"] == "1"
    assert find_difference(whole, read_run(folder / "contained")) == ""
