"""One process holds the lock, others wait for its signs of life and take it over without them."""

import json
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from dpo_lightning.data.cache import build_lock
from dpo_lightning.data.cache.build_lock import BuildLock
from dpo_lightning.data.cache.row_cache import RowCache


@pytest.mark.parametrize(
    "place",
    [
        lambda lock: lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "t"})),
        lambda lock: lock.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "token": "t"})),
        lambda lock: lock.write_text("[" * 100_000),
        lambda lock: lock.symlink_to("nowhere"),
        os.mkfifo,
    ],
    ids=["of another machine", "of a process that lives", "nested", "a link to nothing", "a pipe"],
)
def test_a_lock_without_signs_of_life_is_taken_over(place, tmp_path, monkeypatch, caplog):
    """The message says no more than what is known."""
    caplog.set_level("INFO", "dpo_lightning")
    monkeypatch.setattr(build_lock, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(build_lock, "POLL_SECONDS", 0.01)
    lock = tmp_path / "x.lock"
    place(lock)
    mine = BuildLock(lock)
    began = time.monotonic()
    assert mine.acquire(lambda: time.monotonic() - began > 60)
    assert len(build_lock.parse_owner(lock.read_text())["token"]) == 32
    mine.release()
    assert list(tmp_path.iterdir()) == []
    (line,) = [record.message for record in caplog.records if "encodes the rows" in record.message]
    assert re.search(r" has shown no sign of life for \d+ s: this run encodes the rows$", line)


def test_a_folder_in_the_place_of_the_lock_is_an_error(tmp_path):
    (tmp_path / "x.lock").mkdir()
    with pytest.raises(OSError, match=r"x\.lock in it is a folder, and not a lock"):
        BuildLock(tmp_path / "x.lock").acquire(lambda: False)
    assert (tmp_path / "x.lock").is_dir()


def test_a_lock_with_signs_of_life_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(build_lock, "STALE_SECONDS", 0.4)
    monkeypatch.setattr(build_lock, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(build_lock, "HEARTBEAT_SECONDS", 0.05)
    held = BuildLock(tmp_path / "x.lock")
    assert held.acquire(lambda: False)
    began = time.monotonic()
    assert not BuildLock(tmp_path / "x.lock").acquire(lambda: time.monotonic() - began > 1)
    assert "token" in (tmp_path / "x.lock").read_text()
    held.release()


def test_other_ranks_let_the_first_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(build_lock, "HEAD_START_SECONDS", 0.3)
    monkeypatch.setattr(build_lock, "POLL_SECONDS", 0.01)
    began = time.monotonic()
    lock = BuildLock(tmp_path / "x.lock")
    assert lock.acquire(lambda: False)
    assert time.monotonic() - began > 0.3
    lock.release()


@pytest.mark.parametrize("result", ["nothing", "an entry", "the entry"])
def test_processes_that_wait_go_on_at_once_only_if_the_first_leaves_nothing(result, tmp_path, monkeypatch):
    """Else they would read the same faulty rows one after the other; with an entry of other ids, one more encodes."""
    monkeypatch.setattr(build_lock, "POLL_SECONDS", 0.01)
    cache, rows, name = RowCache(tmp_path), "a" * 64, f"{'a' * 24}-{'b' * 24}"
    waiting, met = threading.Barrier(3), threading.Barrier(2)
    inside = []

    def wait():
        looked = count()

        def is_done():
            if next(looked) == 2:
                waiting.wait(20)
            return result == "the entry" and (tmp_path / name).is_dir()

        with cache.reserve(rows, is_done) as reserved:
            inside.append(reserved)
            if result == "nothing":
                met.wait(20)
            if result == "an entry":
                assert len(list(tmp_path.glob("*.lock"))) == 1

    with ThreadPoolExecutor(2) as pool:
        with cache.reserve(rows, lambda: False) as reserved:
            assert reserved
            others = [pool.submit(wait) for _ in range(2)]
            waiting.wait(20)
            if result != "nothing":
                (tmp_path / name).mkdir()
        for other in others:
            other.result()
    assert inside == [result != "the entry"] * 2
    assert not list(tmp_path.glob("*.lock"))


def test_what_was_built_just_before_the_lock_is_not_built_again(tmp_path):
    """By a process that published it and gave its lock back between two steps of this one."""
    looks = iter([False, True])
    assert not BuildLock(tmp_path / "x.lock").acquire(lambda: next(looks))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_read_is_waited_for(tmp_path, monkeypatch):
    """A link to nothing: it exists, and has no content."""
    waits = []
    monkeypatch.setattr(build_lock.time, "sleep", waits.append)
    (tmp_path / "x.lock").symlink_to(tmp_path / "nowhere")
    assert not BuildLock(tmp_path / "x.lock").acquire(lambda: len(waits) == 3)
