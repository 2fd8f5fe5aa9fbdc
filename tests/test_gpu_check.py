"""`python -m benchmarks gpu`: every part at toy size, and what becomes of one that fails, hangs or lacks memory."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from support.command_line import ROOT

from benchmarks.gpu.report import MEMORY, Report, Row, read_rows
from benchmarks.gpu.runner import PARTS, Outcome, Part, format_part, format_value, run_parts


def check(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", "gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_at_toy_size_and_meets_its_goals(part, tmp_path):
    ran = check("--cpu", "--only", part, "--out", tmp_path)
    table = (tmp_path / "gpu.md").read_text()
    assert ran.returncode == 0, table + ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"].keys() >= {"device", "torch", "transformers", "python"}
    assert list(found["parts"]) == [part]
    assert found["parts"][part]["state"] == "finished"
    assert len(found["parts"][part]["rows"]) >= 3
    assert f"## {part}: finished" in table
    assert f"## {part}: finished" in ran.stdout


def test_a_machine_without_a_gpu_is_named(tmp_path):
    ran = check("--out", tmp_path / "out")
    assert ran.returncode == 69
    assert "finds no CUDA device" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


BROKEN = {
    "fails": ("raise ValueError('the kernel is broken')", "failed: ValueError: the kernel is broken"),
    "lacks memory": ("raise MemoryError", MEMORY),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", MEMORY),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    "hangs": (
        "import os, subprocess, tempfile, time; tempfile.mkdtemp(prefix=os.environ['DPO_LIGHTNING_SCRATCH']); "
        "report.add('process', subprocess.Popen(['sleep', '600']).pid); time.sleep(600)",
        "stopped after 15 s",
    ),
}


def test_a_part_that_does_not_end_well_costs_itself_alone(tmp_path, monkeypatch, capsys):
    """And what it has measured, and what it has started, are accounted for."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setattr("benchmarks.gpu.runner.TOY_SECONDS", 15)
    monkeypatch.chdir(ROOT)
    parts = {}
    for number, (name, (body, _)) in enumerate((BROKEN | {"ends": ("report.add('last', 2)", "")}).items()):
        lines = f"def measure(report, device):\n    report.add('first', 1)\n    {body}\n"
        (tmp_path / f"broken{number}.py").write_text(textwrap.dedent(lines))
        parts[name] = Part(f"broken{number}", 600)
    outcomes = run_parts(parts, tmp_path / "out", toy=True)
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        **{name: state for name, (_, state) in BROKEN.items()},
        "ends": "finished",
    }
    assert all(outcome.rows[0] == Row("first", 1) for outcome in outcomes.values())
    assert [name for name, outcome in outcomes.items() if outcome.passed] == ["ends"]
    with pytest.raises(ProcessLookupError):
        until_gone(outcomes["hangs"].rows[1].value)
    assert not list(Path(tempfile.gettempdir()).glob(f"dpo-lightning-{os.getpid()}-*"))
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert all(f"## {name}: {state}" in table for name, (_, state) in BROKEN.items())
    assert "## hangs: stopped after 15 s" in capsys.readouterr().out


def until_gone(process):
    """Raise `ProcessLookupError` as soon as a process has ended; a killed one stays for a moment."""
    for _ in range(100):
        os.kill(process, 0)
        time.sleep(0.1)


def test_an_error_in_the_middle_is_a_row(tmp_path):
    report = Report(tmp_path / "rows", toy=False)
    with report.attempt("first"):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    with report.attempt("second"):
        raise ValueError("no kernel\nfor this")
    report.add("third", 1.0)
    assert read_rows(tmp_path / "rows") == [
        Row("first", MEMORY, "", False),
        Row("second", "ValueError: no kernel", "", False),
        Row("third", 1.0),
    ]


@pytest.mark.parametrize(("value", "passed"), [(1e-6, True), (1e-5, True), (2e-5, False), (float("nan"), False)])
def test_errors_have_a_limit(value, passed, tmp_path):
    report = Report(tmp_path / "rows", toy=True)
    report.at_most("error", value, 1e-5)
    report.worst("errors", {"small": 0.0, "large": value, "none": 1e-9}, 1e-5)
    one, worst = read_rows(tmp_path / "rows")
    assert (one.passed, worst.passed) == (passed, passed)
    assert worst.what == "errors: largest of 3 errors, large"


@pytest.mark.parametrize(("toy", "passed"), [(True, None), (False, False)])
def test_a_speed_has_a_goal_on_a_gpu_only(toy, passed, tmp_path):
    report = Report(tmp_path / "rows", toy)
    report.at_least("speed", 1.5, 2.0)
    assert read_rows(tmp_path / "rows")[0].passed is passed


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    report = Report(tmp_path / "rows", toy=True)
    report.add("whole", 1)
    with report.path.open("a") as file:
        file.write('{"what": "cut o')
    assert read_rows(report.path) == [Row("whole", 1)]
    assert read_rows(tmp_path / "nothing") == []


def test_the_table_has_aligned_columns():
    outcome = Outcome("finished", 12.4, [Row("short", 1, "at most 2", True), Row("a longer name", 1e-7, "", False)])
    lines = format_part("part", outcome).splitlines()
    assert lines[0] == "## part: finished, 12 s"
    assert len({len(line) for line in lines[2:]}) == 1
    assert lines[4].split("|")[4].strip() == "ok"
    assert lines[5].split("|")[4].strip() == "FAILED"
    assert format_value(0.0123456) == "0.0123"
