"""Marks of points: what a process that is gone leaves counts as missing, and one process at a time has a point."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from dpo_lightning.sweeps.marks import STALE, Mark, PointFiles, process_start


@pytest.fixture
def files(tmp_path):
    made = PointFiles(tmp_path, "beta-0.1")
    made.run.mkdir(parents=True)
    return made


def test_a_point_without_a_mark_or_with_a_damaged_one_is_missing(files):
    assert files.read_mark() == Mark()
    for text in ("", "{", "[]", '{"state": "done", "unknown": 1}'):
        files.mark.write_text(text)
        assert files.read_mark() == Mark()


def test_a_running_process_is_running_and_a_dead_one_is_missing(files):
    mark = Mark.running("fit")
    assert (mark.pid, bool(mark.host), bool(mark.since)) == (os.getpid(), True, True)
    files.write_mark(mark)
    assert files.read_mark().state == "running"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    files.write_mark(replace(mark, pid=child.pid, process_start=process_start(child.pid)))
    assert files.read_mark().state == "running"
    child.communicate()
    assert files.read_mark().state == "missing"


def test_another_process_with_the_number_of_a_dead_one_is_another(files):
    files.write_mark(replace(Mark.running("fit"), process_start="boot 1"))
    assert files.read_mark().state == "missing"


def test_a_process_of_another_machine_counts_while_it_touches_its_mark(files):
    files.write_mark(replace(Mark.running("fit"), host="elsewhere", process_start="other 1"))
    assert files.read_mark().state == "running"
    with files.claim() as free:
        assert not free
    old = files.mark.stat().st_mtime - STALE - 1
    os.utime(files.mark, (old, old))
    assert files.read_mark().state == "missing"


def test_done_takes_a_model_and_its_evaluation(files):
    files.write_mark(Mark("done"))
    assert files.read_mark().state == "missing"
    files.model.mkdir()
    files.summary.write_text("{}")
    assert files.read_mark().state == "done"
    assert json.loads(files.mark.read_text()) == asdict(Mark("done"))


def test_one_process_at_a_time_has_a_point(files):
    other = (
        "import sys; from pathlib import Path; from dpo_lightning.sweeps.marks import PointFiles\n"
        "with PointFiles(Path(sys.argv[1]), 'beta-0.1').claim() as free: print(free)"
    )
    command = [sys.executable, "-c", other, str(files.run.parents[1])]
    with files.claim() as free:
        assert free
        assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True\n"


def test_a_mark_with_values_of_other_types_is_none(files):
    good = asdict(Mark("failed", "fit", "no memory", 74))
    for changes in ({"state": "lost"}, {"error": {"a": 1}}, {"code": "x"}, {"pid": None}, {"host": ["a"]}):
        files.mark.write_text(json.dumps(good | changes))
        assert files.read_mark() == Mark(), changes
    files.mark.write_text("[" * 100_000)
    assert files.read_mark() == Mark()
    files.mark.unlink()
    os.mkfifo(files.mark)
    assert files.read_mark() == Mark()
