"""The tests of a file run in one process; where that one crashes, the others run what is left."""

import subprocess
import sys

import pytest
from support.command_line import ROOT

CONFTEST = """
from support.file_scheduling import FileScheduling

def pytest_xdist_make_scheduler(config, log):
    return FileScheduling(config, log)
"""
FINE = "def test_one(): pass\ndef test_other(): pass\n"
CRASH = "import os\ndef test_before(): pass\ndef test_crash(): os._exit(1)\ndef test_after(): pass\n"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("files", [[FINE, FINE, CRASH, FINE], [FINE, FINE, CRASH], [CRASH, FINE, CRASH, CRASH], [FINE]])
def test_a_crash_costs_one_test(tmp_path, files, processes):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    command += ["--numprocesses", processes, "--dist", "loadfile", "--no-loadscope-reorder"]
    done = subprocess.run(
        list(map(str, command)),
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    crashes = files.count(CRASH)
    passed = 2 * len(files)
    summary = f"{crashes} failed, {passed} passed" if crashes else f"{passed} passed"
    assert summary in done.stdout, done.stdout
    assert done.stdout.count("FAILED") == crashes
