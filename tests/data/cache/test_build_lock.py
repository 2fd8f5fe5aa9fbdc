"""One process holds the lock, others wait for its signs of life and take it over without them."""

import json
import time

from dpo_lightning.data.cache import build_lock
from dpo_lightning.data.cache.build_lock import BuildLock


def test_a_lock_without_signs_of_life_is_taken_over(tmp_path, monkeypatch):
    """Of another machine, whose processes are not seen from here."""
    monkeypatch.setattr(build_lock, "STALE", 0.2)
    monkeypatch.setattr(build_lock, "POLL", 0.01)
    lock = tmp_path / "x.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "t"}))
    mine = BuildLock(lock)
    assert mine.acquire(lambda: False)
    assert "elsewhere" not in lock.read_text()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_with_signs_of_life_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(build_lock, "STALE", 0.4)
    monkeypatch.setattr(build_lock, "POLL", 0.01)
    monkeypatch.setattr(build_lock, "BEAT", 0.05)
    held = BuildLock(tmp_path / "x.lock")
    assert held.acquire(lambda: False)
    began = time.monotonic()
    assert not BuildLock(tmp_path / "x.lock").acquire(lambda: time.monotonic() - began > 1)
    assert "token" in (tmp_path / "x.lock").read_text()
    held.release()


def test_other_ranks_let_the_first_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(build_lock, "PATIENCE", 0.3)
    monkeypatch.setattr(build_lock, "POLL", 0.01)
    began = time.monotonic()
    lock = BuildLock(tmp_path / "x.lock")
    assert lock.acquire(lambda: False)
    assert time.monotonic() - began > 0.3
    lock.release()
