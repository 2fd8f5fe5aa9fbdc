"""Points are carried out by processes: in order, side by side, after failures, and after the sweep was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command_line import ROOT

from dpo_lightning.sweeps.grid import make_points
from dpo_lightning.sweeps.processes import last_line, slot_environment
from dpo_lightning.sweeps.runner import Runner
from dpo_lightning.sweeps.slots import Task

PROGRAM = [sys.executable, str(ROOT / "tests/support/fake_program.py")]
LONGEST = 60.0
RUN = [("fit", "beta-0.01"), ("evaluate", "beta-0.01"), ("fit", "beta-0.1"), ("evaluate", "beta-0.1")]

SWEEP = """
import sys
from pathlib import Path
from test_runner import make_tasks
from dpo_lightning.errors import UserError
from dpo_lightning.signals import install
from dpo_lightning.sweeps.runner import Runner
install()
try:
    Runner(Path("out"), {program!r}).run(make_tasks(0.01, 0.1))
except UserError as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.code)
"""


def make_tasks(*betas, tokens=8):
    points = make_points({"model.loss.beta": [str(beta) for beta in betas]}, [])
    evaluate = ["--data", "rows", "--reference", "start", "--max_new_tokens", str(tokens)]
    return [Task(point, ["--config=c", *point.flags()], evaluate, f"digest {tokens}") for point in points]


@pytest.fixture
def runner(place):
    return Runner(Path("out"), PROGRAM)


def calls():
    """The commands that were run: name of the command, of the point, and all words."""
    return [json.loads(line) for line in Path("calls.txt").read_text().splitlines()]


def names():
    found = []
    for words in calls():
        path = next(word for word in words if isinstance(word, str) and "out/points/" in word)
        found.append((words[0], path.partition("out/points/")[2].split("/")[0]))
    return found


def states(runner, tasks):
    return [runner.files(task).read_mark().state for task in tasks]


def wait_for(condition):
    """Wait until something has happened, not for a time."""
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, "it waits for ever"
        time.sleep(0.02)


def begin_sweep(folder):
    """The sweep as a process of its own, up to where its first point hangs with a checkpoint."""
    Path("hang-beta-0.01").touch()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/sweeps")])
    command = [sys.executable, "-c", SWEEP.format(program=PROGRAM)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=folder)
    wait_for(lambda: Path("out/points/beta-0.01/checkpoints/last.ckpt").exists())
    wait_for(lambda: Path("out/points/beta-0.01.status.json").exists())
    return process


def children(pid):
    """Numbers of the processes that a process has started and that are still there."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(number) for number in found.split()]


def exists(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_each_point_is_trained_and_evaluated_once(runner):
    tasks = make_tasks(0.01, 0.1)
    runner.run(tasks)
    assert names() == RUN
    assert states(runner, tasks) == ["done", "done"]
    assert not list(Path("out/points").glob("*/checkpoints"))
    runner.run(tasks)
    assert names() == RUN


def test_a_failed_point_leaves_the_others_alone_and_is_tried_again(runner):
    Path("fail-beta-0.01").touch()
    tasks = make_tasks(0.01, 0.1)
    runner.run(tasks)
    mark = runner.files(tasks[0]).read_mark()
    assert (mark.state, mark.stage, mark.code, mark.error) == ("failed", "fit", 76, "the loss became NaN")
    assert states(runner, tasks) == ["failed", "done"]
    Path("fail-beta-0.01").unlink()
    runner.run(tasks)
    assert states(runner, tasks) == ["done", "done"]
    assert names()[3:] == [("fit", "beta-0.01"), ("evaluate", "beta-0.01")]


def test_other_options_of_the_evaluation_evaluate_again_and_train_nothing(runner):
    runner.run(make_tasks(0.01))
    runner.run(make_tasks(0.01, tokens=16))
    assert [words[0] for words in calls()] == ["fit", "evaluate", "evaluate", "evaluate"]
    assert "--fresh" in calls()[3]
    summary = json.loads(Path("out/points/beta-0.01/eval.summary.json").read_text())
    assert summary["measures"]["length/tokens"]["estimate"] == 16


@pytest.mark.parametrize(
    ("code", "error", "useless"),
    [
        (66, "out/points/beta-0.01/checkpoints/last.ckpt is damaged", True),
        (64, "the chat template has changed since the checkpoint was written", False),
        (66, "the file does not exist at data.train", False),
        (76, "the loss became NaN", False),
    ],
)
def test_the_same_command_goes_on_and_what_is_damaged_is_not_kept(runner, code, error, useless):
    (task,) = make_tasks(0.01)
    checkpoint = Path("out/points/beta-0.01/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    steps = runner.steps(task)
    stage, command = next(steps)
    assert (stage, command) == ("fit", runner.fit_command(task))
    runner.files(task).log.write_text(f"\n$ fit\nerror: {error}\n")
    if useless:
        assert steps.send(code) == ("fit", runner.fit_command(task))
    else:
        with pytest.raises(StopIteration) as end:
            steps.send(code)
        assert (end.value.value.state, end.value.value.error) == ("failed", error)
    assert checkpoint.exists() != useless


def test_a_killed_sweep_takes_its_children_along_and_goes_on_where_it_was(runner, place):
    process = begin_sweep(place)
    (child,) = children(process.pid)
    tasks = make_tasks(0.01, 0.1)
    assert states(runner, tasks) == ["running", "missing"]
    process.kill()
    process.wait()
    wait_for(lambda: not exists(child))
    assert states(runner, tasks) == ["missing", "missing"]
    Path("hang-beta-0.01").unlink()
    runner.run(tasks)
    assert states(runner, tasks) == ["done", "done"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_stops_its_points_at_a_step_and_goes_on_with_them(runner, place, number):
    process = begin_sweep(place)
    (child,) = children(process.pid)
    process.send_signal(number)
    assert process.wait(LONGEST) == 75
    assert not exists(child)
    assert not list(Path("out/points").glob("*.status.json"))
    assert Path("out/points/beta-0.01/checkpoints/last.ckpt").read_text() == "step 1"
    Path("hang-beta-0.01").unlink()
    tasks = make_tasks(0.01, 0.1)
    runner.run(tasks)
    assert states(runner, tasks) == ["done", "done"]
    assert names() == [("fit", "beta-0.01"), *RUN]


def test_a_second_interrupt_ends_a_sweep_at_once(place):
    process = begin_sweep(place)
    (child,) = children(process.pid)
    os.kill(child, signal.SIGSTOP)  # it cannot stop by itself
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1)
    assert process.wait(LONGEST) != 0
    assert not exists(child)
    assert not list(Path("out/points").glob("*.status.json"))


def test_a_point_on_which_another_process_works_is_left_to_it(runner, place):
    process = begin_sweep(place)
    try:
        tasks = make_tasks(0.01, 0.1)
        runner.run(tasks)
        assert states(runner, tasks) == ["running", "done"]
    finally:
        process.terminate()
        process.wait(LONGEST)


def test_points_side_by_side_have_a_device_or_their_share_of_processors_each(place, monkeypatch):
    runner = Runner(Path("out"), PROGRAM, jobs=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    runner.run(make_tasks(0.01, 0.1, 0.5))
    devices = {words[-2] for words in calls()}
    assert devices == {"3", "GPU-5"}
    by_point = {}
    for (_, name), words in zip(names(), calls(), strict=True):
        by_point.setdefault(name, set()).add(words[-2])
    assert all(len(devices) == 1 for devices in by_point.values())

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    assert slot_environment(1, 2)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in slot_environment(0, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert slot_environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "3,4"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert slot_environment(0, 2)["OMP_NUM_THREADS"] == "1"


def test_the_reference_is_computed_once(runner):
    Path("out").mkdir()
    for _ in range(2):
        runner.precompute(["--config=c"], Path("out/reference.safetensors"))
    assert [words[0] for words in calls()] == ["precompute"]


def test_the_last_line_of_the_last_command(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text("\n$ fit a\nerror: old\n\n$ fit b\nstep 1\n 10%\r 20%\n\n")
    assert last_line(log) == "20%"
    assert last_line(log, error=True) == "20%"
    log.write_text("\n$ fit b\nerror: first\n  | text\nfix: this\n")
    assert last_line(log, error=True) == "error: first"
