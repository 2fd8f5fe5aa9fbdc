"""The shipped job script with a program that only waits for signals: who gets them, what is requeued, and when not."""

import sys

import pytest
from support.command_line import ROOT
from support.slurm_jobs import TWO_NODES, Workplace, exit_codes

from dpo_lightning.commands import submit
from dpo_lightning.commands.job_scripts import create_script, read_site, write_script

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def place(cluster, tmp_path, monkeypatch):
    """A workplace whose processes are of the program in the place of this one."""
    monkeypatch.chdir(tmp_path)
    return Workplace(cluster, tmp_path, [sys.executable, str(ROOT / "tests/support/fake_rank.py")])


def begun(place, job, attempt=1, ranks=2):
    for rank in range(ranks):
        place.wait_for(job, f"rank {rank} begins attempt {attempt}\n")


def test_the_batch_shell_hands_its_signal_to_every_rank(place):
    """As Slurm sends it before a time limit; rank 0 may take longer to end, also where KillOnBadExit is set."""
    job = place.send(TWO_NODES, ["late"])
    begun(place, job)
    place.cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    place.wait_for(job, "requeued to go on")
    printed = job.printed()
    assert exit_codes(printed) == {0: 75, 1: 75}
    assert "rank 0 is stopped by SIGUSR1" in printed
    assert "Terminating" not in printed
    assert place.finish(job)["Restarts"] == "1"
    assert "attempt 2, on node[1-2]: " in job.printed()


def test_a_signal_before_the_program_can_take_it_is_no_failure(place):
    job = place.send(TWO_NODES, ["unready"])
    begun(place, job)
    place.signal_step(job)
    assert place.finish(job)["Restarts"] == "1"


def test_a_job_that_a_person_cancels_or_requeues(place):
    """Its ranks stop; a cancelled job stays so, and Slurm itself begins the other once more."""
    jobs = [place.send(["--nodes=1"], ["wait"]) for _ in range(2)]
    for job in jobs:
        begun(place, job, ranks=1)
    cancelled, requeued = jobs
    place.cluster.run("scancel", cancelled.number)
    place.cluster.run("scontrol", "requeue", requeued.number)
    found = place.cluster.wait_for_end(cancelled.number, 120)
    assert place.finish(requeued)["Restarts"] == "1"
    found = place.cluster.describe(cancelled.number)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")
    for job in jobs:
        assert "rank 0 is stopped by SIGTERM" in job.printed()


def test_an_element_of_an_array_requeues_itself_alone(place):
    """Also the one that has the id of the array."""
    number = place.send(["--array=1-3"], ["wait"]).number
    elements = {place.cluster.describe(f"{number}_{i}")["JobId"]: i for i in (1, 2, 3)}
    assert number in elements
    jobs = {name: place.job(name) for name in elements}
    for job in jobs.values():
        begun(place, job, ranks=1)
    first = jobs.pop(number)
    place.cluster.run("scancel", "--batch", "--signal=USR1", f"{number}_{elements[number]}")
    place.wait_for(first, "requeued to go on")
    place.wait_for(first, "begins attempt 2")
    for job in jobs.values():
        assert "stopped" not in job.printed()
        assert "attempt 2" not in job.printed()
    place.cluster.run("scancel", number)


def test_requeues_are_bounded_and_can_be_switched_off(place):
    place.site.write_text(f"{place.site.read_text()}REQUEUES=1\n")
    once = place.send([], ["again"])
    other = place.folder / "other.env"
    other.write_text(f"{place.site.read_text()}REQUEUES=no\n")
    never = place.send([f"--export=ALL,SITE_ENV={other}"], ["again"])
    for job, restarts in ((once, "1"), (never, "0")):
        found = place.cluster.wait_for_end(job.number, 120)
        assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "75:0", restarts), job.printed()
    assert "requeued 1 times" in once.printed()


def send_chain(place, mode, monkeypatch, count=3):
    """Send a chain as `submit` does after its checks, and return its jobs."""
    for name, value in place.cluster.environment.items():
        monkeypatch.setenv(name, value)
    site = read_site(str(place.site))
    settled = {"nodes": "1", "ntasks-per-node": "1", "job-name": f"chain-{mode}", "output": "job-%j.log"}
    plan = submit.Plan(f"chain-{mode}", settled, [mode])
    script = create_script(plan.name, write_script(site, settled, [], plan.arguments, chained=True))
    before = int(place.send(["--hold"], ["0"]).number)
    submit.send_all(site, plan, script, count)
    place.cluster.run("scancel", str(before))
    return [place.job(str(before + i)) for i in range(1, count + 1)]


def test_a_chain_goes_on_after_a_stop(place, monkeypatch):
    """None of its jobs is requeued."""
    first, second = send_chain(place, "wait", monkeypatch, 2)
    begun(place, first, ranks=1)
    place.signal_step(first)
    begun(place, second, ranks=1)
    place.signal_step(second)
    found = [place.cluster.wait_for_end(job.number, 60) for job in (first, second)]
    assert [(one["ExitCode"], one["Restarts"], one["Requeue"]) for one in found] == [("75:0", "0", "0")] * 2


@pytest.mark.parametrize("code", ["0", "76"])
def test_a_chain_ends_where_nothing_is_left_to_do_or_would_fail_again(place, monkeypatch, code):
    jobs = send_chain(place, code, monkeypatch)
    found = [place.cluster.wait_for_end(job.number, 120) for job in jobs]
    assert [one["JobState"] for one in found] == ["COMPLETED" if code == "0" else "FAILED", "CANCELLED", "CANCELLED"]
    assert not any(job.printed() for job in jobs[1:])
