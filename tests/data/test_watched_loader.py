"""Workers that are killed or stopped: the run ends, says which one it was, and leaves no process behind."""

import gc
import os
import signal
import time
from pathlib import Path

import pytest
from support.command_line import refused
from torch.utils.data import SequentialSampler

from dpo_lightning.data import watched_loader
from dpo_lightning.data.watched_loader import WatchedLoader, describe_process
from dpo_lightning.errors import ExitCode, UserError


class Row:
    """A row of encoded data."""

    def __init__(self, number):
        self.origin = f"rows.jsonl:{number + 1}"


class Rows:
    """A data set; one of its batches does something to the worker that prepares it."""

    def __init__(self, trap=None, at=5):
        self.rows = [Row(number) for number in range(20)]
        self.trap, self.at = trap, at

    def __getitem__(self, batch):
        if self.trap is not None and self.at in batch:
            self.trap()
        return batch


class Batches(SequentialSampler):
    """Two rows a batch."""

    def __iter__(self):
        for first in range(0, 20, 2):
            yield [first, ~(first + 1)] if first == 18 else [first, first + 1]


def loader(trap=None, seconds=1.0, workers=2):
    return WatchedLoader(
        Rows(trap), batch_size=None, sampler=Batches(range(10)), num_workers=workers, timeout=seconds if workers else 0
    )


def kill():
    time.sleep(0.3)  # the batch before is on its way
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGSTOP)


def failure(made, monkeypatch, patience=2):
    """The error of a loader, after which none of its workers is alive."""
    monkeypatch.setattr(watched_loader, "PATIENCE", patience)
    batches = iter(made)
    seen = [next(batches)]
    workers = [worker.pid for worker in next(iter(gc_workers(batches)))]
    with pytest.raises(UserError) as raised:
        seen.extend(batches)
    assert raised.value.code == ExitCode.IO
    end = time.monotonic() + 20
    while any(describe_process(pid) != "has ended" for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)
    return str(raised.value)


def gc_workers(batches):
    """The workers of the iterator that a generator holds."""
    yield batches.gi_frame.f_locals["batches"]._workers


@pytest.mark.parametrize("workers", [0, 2])
def test_all_batches_come_in_their_order(workers):
    assert list(loader(workers=workers)) == list(Batches(range(10)))


def test_a_killed_worker_is_named_with_its_rows(monkeypatch):
    told = failure(loader(kill), monkeypatch)
    assert "worker 0 (process " in told
    assert "has ended, killed by signal 9" in told
    assert "rows.jsonl:5, rows.jsonl:6" in told


def test_a_stopped_worker_is_named_with_its_rows(monkeypatch):
    told = failure(loader(stop), monkeypatch)
    assert "worker 0 (process " in told
    assert "is stopped" in told
    assert "rows.jsonl:5, rows.jsonl:6" in told


def test_a_worker_that_does_not_answer_is_named(monkeypatch):
    assert "does not answer" in failure(loader(lambda: time.sleep(600)), monkeypatch)


def test_a_batch_may_take_longer_than_a_part_of_the_limit(monkeypatch):
    monkeypatch.setattr(watched_loader, "PATIENCE", 1000)
    assert len(list(loader(lambda: time.sleep(0.5), seconds=0.05))) == 10


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_that_hang_at_their_start_are_started_again(monkeypatch, tmp_path, persistent, caplog):
    """Once, and with the same batches; later ones are waited for longer."""
    monkeypatch.setattr(watched_loader, "START", 2)
    mark = tmp_path / "begun"

    def hang_once():
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        time.sleep(600)

    made = WatchedLoader(
        Rows(hang_once, at=0),
        batch_size=None,
        sampler=Batches(range(10)),
        num_workers=2,
        timeout=0.5,
        persistent_workers=persistent,
    )
    before = children()
    assert list(made) == list(Batches(range(10)))
    assert list(made) == list(Batches(range(10)))
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        " the workers that prepare them are started again"
    ]
    del made
    gc.collect()
    assert children() <= before


def test_workers_that_hang_again_end_the_run(monkeypatch):
    monkeypatch.setattr(watched_loader, "START", 2)
    monkeypatch.setattr(watched_loader, "PATIENCE", 4)
    made = WatchedLoader(
        Rows(lambda: time.sleep(600), at=0), batch_size=None, sampler=Batches(range(10)), num_workers=1, timeout=0.3
    )
    with pytest.raises(UserError, match="does not answer"):
        next(iter(made))


def test_other_errors_of_a_worker_stay_what_they_are():
    def fail():
        raise KeyError("column")

    with pytest.raises(KeyError, match="column"):
        list(loader(fail))


def test_a_killed_worker_is_named_without_torchs_handler(monkeypatch):
    """Lightning takes it away after a run, and torch sets it once for each process."""
    next(iter(loader(workers=1)))  # torch sets it now, if it has not yet
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        assert "has ended, killed by signal 9" in failure(loader(kill), monkeypatch)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def children():
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_a_run_whose_worker_is_killed_ends_with_74(bench, monkeypatch):
    """Wherever the main process is, since torch raises the error when the signal comes."""
    from dpo_lightning.data.samplers import RowDataset

    real = RowDataset.__getitem__
    main = os.getpid()

    def trap(self, indices):
        if os.getpid() != main and 5 in indices:
            kill()
        return real(self, indices)

    monkeypatch.setattr(RowDataset, "__getitem__", trap)
    before = children()
    ran = bench.fit("--data.num_workers", 1, "--data.batch_size", 1, "--trainer.accumulate_grad_batches", 1)
    refused(ran, ExitCode.IO, "data.num_workers", "--data.num_workers 0")
    assert all(describe_process(pid) == "has ended" for pid in children() - before)
