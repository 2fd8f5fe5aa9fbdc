"""Output that is closed, full or read by nobody, and memory, files and folders that are limited."""

import io
import os
import signal
import sys

import pytest
from support.fault_tools import needs, run_in_shell

from dpo_lightning.streams import LossyStream, save_traceback, surviving_streams

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110


@FULL
@pytest.mark.parametrize(
    "end",
    ["| head -1; exit ${PIPESTATUS[0]}", "> /dev/full", ">&-", "2> /dev/full", ">&- 2>&-"],
    ids=["head", "full", "closed", "stderr-full", "both-closed"],
)
def test_a_run_goes_on_where_its_output_is_lost(end, bench):
    ran = run_in_shell(f'"$@" {end}', ["fit", *bench.options()])
    assert ran.returncode == 0, ran
    assert (bench.folder / "run/final_model/model.safetensors").exists()
    assert (bench.folder / "run/metrics.json").exists()
    if "full" in end and "2>" not in end:
        assert "warning: stdout cannot be written (No space left on device)" in ran.stderr


@FULL
def test_a_command_whose_result_is_its_output_fails(bench):
    ran = run_in_shell('"$@" > /dev/full', ["--help"])
    assert (ran.returncode, ran.stderr.splitlines()[0]) == (74, "error: writing failed: No space left on device")
    assert run_in_shell('"$@" > /dev/full 2>&1', ["doctor", "--bad"]).returncode == 64


class Broken(io.StringIO):
    """A stream that fails from some write on."""

    def __init__(self, file, fail):
        super().__init__()
        self.file, self.fail = file, fail

    def write(self, text):
        if self.fail:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)

    def flush(self):
        self.write("")

    def fileno(self):
        return self.file.fileno()


def test_a_lossy_stream_leads_nowhere_after_its_first_failure(tmp_path, capsys):
    with (tmp_path / "out").open("w+") as file:
        broken = Broken(file, fail=False)
        stream = LossyStream(broken, report=True)
        assert stream.write("a") == 1
        assert broken.getvalue() == "a"
        assert not stream.isatty()
        broken.fail = True
        assert stream.write("lost") == 4
        os.write(file.fileno(), b"nowhere")
        stream.flush()
    assert (tmp_path / "out").read_text() == ""
    assert "stdout cannot be written (Broken pipe)" in capsys.readouterr().err


def test_streams_are_restored(monkeypatch):
    before = sys.stdout, sys.stderr
    with surviving_streams(stdout=True):
        print("shown")
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdout", None)
    with surviving_streams(stdout=False):
        print("nowhere")


def test_a_traceback_is_saved_somewhere(monkeypatch, tmp_path, capsys):
    """In the folder of temporary files, else in the current one, else on the terminal."""
    import tempfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    try:
        raise ValueError("reason")
    except ValueError:
        name = save_traceback()
        assert "ValueError: reason" in (tmp_path / name).read_text()
        monkeypatch.setattr(os, "curdir", str(tmp_path / "missing"))
        assert save_traceback() == "the traceback above"
    assert "ValueError: reason" in capsys.readouterr().err


@needs("prlimit")
@pytest.mark.parametrize("size", ["1000", "100000"])
def test_a_limit_of_the_size_of_files_is_no_bug(size, bench):
    ran = run_in_shell(f'prlimit --fsize={size} "$@"', ["fit", *bench.options(), "--data.cache=none"])
    assert ran.returncode in (73, 74), ran
    assert "File too large" in ran.stderr
    assert "Traceback" not in ran.stderr


@needs("prlimit")
@pytest.mark.parametrize("more", [-300, 160, 220])
def test_a_limit_of_memory_is_no_bug(more, bench):
    """Below what imports take, and above it: how far a run comes differs, not how it ends."""
    code = "import dpo_lightning.cli, re; print(re.search('VmPeak.* (.*) kB', open('/proc/self/status').read())[1])"
    peak = run_in_shell(f'"$1" -c "{code}"', [])
    limit = (int(peak.stdout) + 1000 * more) * 1024
    ran = run_in_shell(f'OPENBLAS_NUM_THREADS=1 prlimit --as={limit} "$@"', ["fit", *bench.options()])
    assert ran.returncode in (74, -signal.SIGSEGV), ran  # libraries without memory may crash as Python ends
    assert "fix: --data.batch_size 1" in ran.stderr
