"""A run's folder that cannot be written, or that another process uses."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import ROOT, refused, watch_loading

from dpo_lightning.errors import UserError
from dpo_lightning.runs.disk_space import check_space
from dpo_lightning.runs.run_folder import RunFolder

HOLD = """
import sys
from dpo_lightning.runs.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
folder.check()
folder.claim()
print("held", flush=True)
sys.stdin.read()
"""
NOBODY = 65534


@contextlib.contextmanager
def held(folder):
    """Another process that has claimed the folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], env=env, **pipes) as other:
        try:
            assert other.stdout.readline() == "held\n"
            yield
        finally:
            other.communicate()


@contextlib.contextmanager
def without_privileges():
    """Be nobody for a while where the tests run as root, whom no mode keeps out."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("command", ["fit", "predict"])
@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_a_file_in_the_way(bench, monkeypatch, command, below):
    loaded = watch_loading(monkeypatch)
    (bench.folder / "file").touch()
    refused(bench.run(command, out=f"file/{below}"), 73, "file is not a folder at output_dir")
    assert not loaded


def test_a_dangling_link(bench):
    (bench.folder / "run").symlink_to(bench.folder / "nowhere")
    refused(bench.fit(), 73, "is not a folder at output_dir")


@pytest.mark.parametrize(("mode", "below"), [(0o555, "run"), (0o555, ""), (0o500, "run/deeper")])
def test_a_folder_that_cannot_be_written(mode, below):
    """Also one that cannot even be looked into."""
    closed = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folder is closed to everybody else
    closed.chmod(mode)
    try:
        with without_privileges(), pytest.raises(UserError, match="is not writable") as caught:
            RunFolder(str(closed / below)).check()
        assert caught.value.code == 73
    finally:
        closed.chmod(0o700)
        shutil.rmtree(closed)


def test_a_write_test_comes_before_anything_is_loaded(bench, monkeypatch):
    loaded = watch_loading(monkeypatch)

    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dpo_lightning.runs.run_folder.tempfile.TemporaryFile", denied)
    refused(bench.fit(), 73, "is not writable", "Permission denied at output_dir")
    assert not loaded
    assert not (bench.folder / "run").exists()


def test_a_name_that_is_too_long(bench):
    refused(bench.fit("--output_dir", "x" * 300), 64, "200 between two slashes at output_dir")


def test_a_full_disk_is_noticed_with_numbers(bench, monkeypatch, tmp_path):
    """Before the folder is made: free and needed space."""
    monkeypatch.setattr(
        "dpo_lightning.runs.run_folder.shutil.disk_usage", lambda _: SimpleNamespace(free=1_500_000_000)
    )
    with pytest.raises(UserError, match=r"1\.5 GB are free, but the run writes up to 2\.0 GB at output_dir") as caught:
        check_space(tmp_path / "a" / "b", 2_000_000_000)
    assert caught.value.code == 73
    check_space(tmp_path / "a" / "b", 1_500_000_000)
    monkeypatch.setattr("dpo_lightning.runs.run_folder.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    refused(bench.fit(), 73, "GB are free")
    assert not (bench.folder / "run").exists()


def test_two_processes_cannot_share_a_folder(bench, monkeypatch):
    """Not by --fresh either; when the other has ended, the folder is free."""
    loaded, folder = watch_loading(monkeypatch), bench.folder / "run"
    with held(folder):
        (folder / "config.yaml").touch()
        for more in ([], ["--fresh"]):
            refused(bench.fit(*more), 73, "another process uses the folder", "wait until it ends")
        assert not loaded
        assert not list(bench.folder.glob("run.*"))
    (folder / "config.yaml").unlink()
    assert bench.fit("--trainer.max_steps", "1").code == 0


def test_of_two_that_start_together_one_goes_on(tmp_path):
    """Both have checked; the second to claim is refused, while the first runs and after it has ended."""
    first, second, third = (RunFolder(str(tmp_path / "run")) for _ in range(3))
    for folder in (first, second, third):
        folder.check()
    first.claim()
    first.write_config("first")
    with pytest.raises(UserError, match="another process uses the folder") as caught:
        second.claim()
    assert caught.value.code == 73
    first.release()
    with pytest.raises(UserError, match="already holds a run"):
        third.claim()
    assert (tmp_path / "run" / "config.yaml").read_text() == "first"


def test_a_finished_run_lets_its_folder_go(bench):
    """In one process as well: a notebook or a sweep runs many."""
    assert bench.fit("--trainer.max_steps", "1").code == 0
    assert bench.fit("--fresh", "--trainer.max_steps", "1").code == 0
