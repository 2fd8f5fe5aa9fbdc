"""Handlers of signals: flags, what forked processes and workers do with them, and time limits."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from torch.utils.data import DataLoader

from dpo_lightning import signals, stopping
from dpo_lightning.data.watched_loader import WatchedLoader

LONGEST = 60.0


@pytest.fixture
def installed(monkeypatch):
    """Handlers that are taken away after the test."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    monkeypatch.setattr(signals, "noted", [])
    monkeypatch.setattr(signals, "passes_on", [])
    monkeypatch.setattr(signals, "_modes", set())
    signals.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def limits(monkeypatch):
    """No time limits before and after."""
    monkeypatch.setattr(stopping, "_deadlines", {})


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.usefixtures("limits")
def test_without_the_command_line_nothing_is_handled():
    """A program that uses the package keeps its handlers."""
    assert not signals.is_installed()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not stopping.requested()
    stopping.raise_if_requested()


@pytest.mark.usefixtures("installed", "limits")
@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_sets_a_flag(number):
    passed_on = []
    signals.passes_on.append(passed_on.append)
    send(number)
    if number is not signal.SIGINT:
        send(number)
    assert (stopping.requested(), stopping.reason()) == (True, number.name)
    assert passed_on == [signal.SIGTERM]
    with pytest.raises(stopping.Stopped, match=f"stopped by {number.name}: step 3 is saved\nfix: .* goes on") as raised:
        stopping.raise_if_requested("step 3 is saved")
    assert raised.value.code == 75


def test_a_process_goes_on_until_it_has_met_the_first_one(monkeypatch):
    """Which may wait for it; they stop together then."""
    monkeypatch.setattr(stopping, "requested", lambda: True)
    stopping.defer_until_met(True)
    stopping.raise_if_requested()
    with pytest.raises(stopping.Stopped):
        stopping.raise_if_any(SimpleNamespace(reduce_boolean_decision=lambda flag, all: flag))
    with pytest.raises(stopping.Stopped):
        stopping.raise_if_requested()


@pytest.mark.usefixtures("installed", "limits")
def test_sigint_ends_at_once_where_it_comes_again():
    send(signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as raised:
        send(signal.SIGINT)
    assert (raised.value.number, stopping.reason()) == (signal.SIGINT, "SIGTERM")


@pytest.mark.usefixtures("installed", "limits")
def test_a_command_without_a_boundary_ends_where_it_is():
    """Once, so that what it cleans up is not interrupted."""
    signals.end_at_once()
    with pytest.raises(signals.Interrupted, match="SIGTERM"):
        send(signal.SIGTERM)
    send(signal.SIGTERM)


@pytest.mark.usefixtures("installed", "limits")
def test_it_ends_after_an_import(tmp_path, monkeypatch):
    """A library would report an exception within its import as a failure of its own."""
    (tmp_path / "heavy_module.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n    done = sum(range(9))\n"
        "except BaseException:\n    raise ImportError('heavy_module is broken')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    signals.end_at_once()
    with pytest.raises(signals.Interrupted):  # noqa: PT012 - it comes a moment after the import
        import heavy_module

        assert heavy_module.done == 36
        time.sleep(LONGEST)


@pytest.mark.usefixtures("installed", "limits")
def test_a_forked_process_can_be_terminated():
    """Its parent ends it by SIGTERM."""
    child = os.fork()
    if not child:
        time.sleep(LONGEST)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.usefixtures("installed", "limits")
def test_a_worker_goes_on_and_its_parent_ends_it():
    loader = DataLoader(
        list(range(200)), num_workers=1, worker_init_fn=signals.shield_worker, persistent_workers=True, batch_size=None
    )
    rows = iter(loader)
    assert next(rows) == 0
    (worker,) = rows._workers
    names = " ".join(f"kill -{number.value} {worker.pid};" for number in signals.ENDING)
    subprocess.run(["sh", "-c", names], check=True)
    assert [int(row) for row in rows] == list(range(1, 200))
    assert worker.is_alive()
    worker.terminate()
    worker.join(LONGEST)
    assert worker.exitcode == 0


@pytest.mark.usefixtures("installed", "limits")
def test_a_worker_takes_no_signal_before_it_is_ready(monkeypatch):
    """A job that is signalled as a whole may have forked it a moment before."""
    parent, set_threads = os.getpid(), torch.set_num_threads

    def signalled(number):  # the first that a worker calls
        set_threads(number)
        for sent in signals.ENDING if os.getpid() != parent else ():
            os.kill(os.getpid(), sent)

    monkeypatch.setattr(torch, "set_num_threads", signalled)
    rows = WatchedLoader(list(range(20)), num_workers=2, worker_init_fn=signals.shield_worker, batch_size=None)
    assert [int(row) for row in rows] == list(range(20))


@pytest.mark.usefixtures("limits")
def test_a_time_limit(monkeypatch):
    """It counts from the start of the process."""
    monkeypatch.setattr(stopping, "BEGAN", time.monotonic() - 100)
    stopping.set_deadline(200.0)
    assert not stopping.requested()
    stopping.set_deadline(99.0)
    assert (stopping.requested(), stopping.reason()) == (True, "trainer.max_time")
    stopping.set_deadline(None)
    assert not stopping.requested()


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(
    ("began", "ends", "requested"),
    [
        (-3600, 110, True),
        (-3600, 130, False),
        (-100, 20, False),  # a short job: a tenth of it, 12 s, is the margin
        (-100, 10, True),
        (None, 110, True),
        (None, "Unknown", False),
    ],
)
def test_the_end_of_a_slurm_job(monkeypatch, began, ends, requested):
    now = time.time()
    for name, value in (("START", began), ("END", ends)):
        if value is not None:
            text = value if isinstance(value, str) else str(int(now + value))
            monkeypatch.setenv(f"SLURM_JOB_{name}_TIME", text)
    stopping.follow_slurm()
    assert stopping.requested() == requested
    assert not requested or stopping.reason() == "the end of the Slurm job"


@pytest.mark.usefixtures("installed", "limits")
def test_ranks_agree():
    """The others learn it from one, and say so."""
    stopping.raise_if_any(SimpleNamespace(reduce_boolean_decision=lambda own, all: own))
    with pytest.raises(stopping.Stopped, match="stopped by a signal to another process: step 1 is saved"):
        stopping.raise_if_any(SimpleNamespace(reduce_boolean_decision=lambda own, all: True), "step 1 is saved")


def test_ranks_may_end_one_after_the_other():
    """Lightning's observer of the ranks that it has started would kill this process when one of them ends."""
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(75)"])
    ended.wait(LONGEST)
    observer = _ChildProcessObserver(os.getpid(), [ended], sleep_period=0)
    terminated = []
    observer._terminate_all = lambda: terminated.append(True)
    observer.run = lambda: released.wait(LONGEST)
    released = threading.Event()
    observer.start()
    stopping.release_ranks()
    released.set()
    observer.join(LONGEST)
    assert observer._run()
    assert not terminated


def test_the_handlers_need_no_import():
    """They are there before anything that takes time is imported."""
    code = "import dpo_lightning.signals, sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"logging", "dataclasses", "inspect", "torch", "numpy"} & set(eval(said))
