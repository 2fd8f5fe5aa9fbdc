"""What `doctor` reports, and its exit code."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_lightning import hardware
from dpo_lightning.commands import doctor
from dpo_lightning.commands.fetch_model import STAMP
from dpo_lightning.errors import ExitCode
from dpo_lightning.models.folder_checks import EMBEDDED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def report(monkeypatch, tmp_path, capsys):
    """Run the doctor in an empty folder; returns the exit code and the lines."""
    monkeypatch.chdir(tmp_path)

    def run():
        code = doctor.main([])
        return code, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def versions(monkeypatch):
    """Replace the versions of installed packages; None means that the package is not there."""

    def replace(**changed):
        def version(name):
            found = changed.get(name, "") if name in changed else real(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        real = metadata.version
        monkeypatch.setattr(metadata, "version", version)

    return replace


def test_healthy_machine(report):
    code, lines = report()
    assert code == 0
    assert lines[-1] == "nothing required is missing"
    assert all(re.match(r"(ok|note) {5,7}\S| {9}fix: \S|$|nothing", line) for line in lines)
    for part in (
        "python ",
        "torch 2.",
        "lightning 2.",
        "CPU core",
        "GiB of memory",
        "precision ",
        "GB free",
    ):
        assert any(part in line for line in lines), part


def test_it_looks_for_nothing_that_the_project_does_not_use(report):
    """Its findings, by kind: a tool that no command and no recipe runs is no finding."""
    _, lines = report()
    kinds = r"python|[\w-]+ \d|\d+ CPU cores|[\d.]+ GiB of memory|no GPU|GPU|precision|no embedded model|[\d.]+ GB free"
    for line in lines:
        if line.startswith(("ok", "note", "missing")):
            assert re.match(rf"\w+ +({kinds})", line), line


def test_every_note_and_gap_names_a_remedy(report, versions):
    versions(peft=None, torch="2.5.1+cpu")
    code, lines = report()
    assert code == ExitCode.DEVICE
    gaps = [i for i, line in enumerate(lines) if line.startswith("missing")]
    assert [lines[i] for i in gaps] == ["missing  peft", "missing  torch<3,>=2.11: 2.5.1+cpu is here"]
    assert all(lines[i + 1].strip() == "fix: make setup" for i in gaps)
    assert lines[-1] == "2 missing"


@pytest.mark.parametrize("version", doctor.MALWARE)
def test_malware_ends_the_examination(report, versions, monkeypatch, version):
    versions(lightning=version)
    monkeypatch.setattr(doctor, "_torch", lambda: pytest.fail("an infected environment was used"))
    code, lines = report()
    assert code == ExitCode.DEVICE
    assert any("malware" in line for line in lines)


def test_broken_torch_is_a_line_and_no_traceback(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, lines = report()
    assert code == ExitCode.DEVICE
    assert any(line.startswith("missing  torch cannot be used: ") for line in lines)
    assert any("GB free" in line for line in lines), "the report goes on"


def test_model_absent_damaged_whole(report, tmp_path, monkeypatch):
    assert f"note     no embedded model in {EMBEDDED}" in report()[1]
    (tmp_path / EMBEDDED).mkdir(parents=True)
    code, lines = report()
    assert code == ExitCode.DEVICE
    i = lines.index(f"missing  the embedded model: in {EMBEDDED}, there is no {STAMP}")
    assert lines[i + 1].strip() == f"fix: rm -r {EMBEDDED} && python -m dpo_lightning fetch-model"
    monkeypatch.setattr(doctor, "damage", lambda folder: "")
    code, lines = report()
    assert code == 0
    assert f"ok       embedded model in {EMBEDDED}" in lines


def test_bare_machine_only_has_notes(report, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(doctor, "DISK_LOW", float("inf"))
    code, lines = report()
    assert code == 0
    i = next(i for i, line in enumerate(lines) if "GB free" in line)
    assert lines[i].startswith("note")
    assert lines[i + 1].strip().startswith("fix: ")


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000", "a/b/memory.max": "1073741824"}, 1.5, 2**30),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2, 0),
        ("0::/a", {"a/cpu.max": "max 100000", "a/memory.max": "max"}, 0, 0),
        ("0::/seen/from/outside", {"cpu.max": "300000 100000", "memory.max": "4096"}, 3, 4096),
        (
            "5:cpu,cpuacct:/a\n4:memory:/a\n1:name=systemd:/",
            {
                "cpu/a/cpu.cfs_quota_us": "400000",
                "cpu/a/cpu.cfs_period_us": "100000",
                "memory/a/memory.limit_in_bytes": "512",
            },
            4,
            512,
        ),
        ("5:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0, 0),
        ("", {}, 0, 0),
        (None, {}, 0, 0),
    ],
)
def test_limits_of_a_container(tmp_path, monkeypatch, own, files, cores, memory):
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(hardware, "OWN_CGROUPS", tmp_path / "own")
    if own is not None:
        (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert hardware.read_cgroup("cpu") == cores
    assert hardware.read_cgroup("memory") == memory


def test_a_quota_below_the_cores_is_reported(monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(doctor, "read_cgroup", lambda resource: {"cpu": 2.5, "memory": 2**30}[resource])
    monkeypatch.setattr(hardware, "read_cgroup", doctor.read_cgroup)
    cores, threads, memory = doctor._machine()
    assert cores.text == "64 CPU cores, of which the cgroup grants 2.5"
    assert threads.fix == "export OMP_NUM_THREADS=2"
    assert memory.text == "1.0 GiB of memory"


def fake_torch(gpus=(), cuda=None):
    """As much of torch as the doctor asks."""
    properties = [SimpleNamespace(name=name, total_memory=80 * 2**30, major=9, minor=0) for name in gpus]
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_properties=lambda i: properties[i],
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
        version=SimpleNamespace(cuda=cuda),
    )


def test_gpus_are_listed():
    found = [str(finding) for finding in doctor._gpus(fake_torch(["H100", "H200"]))]
    assert found == ["ok       GPU 0: H100, 80 GiB, sm_90", "ok       GPU 1: H200, 80 GiB, sm_90"]


def test_why_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "version")
    assert next(doctor._no_gpu(fake_torch(), [])).text.startswith("no GPU")
    (tmp_path / "version").touch()
    assert next(doctor._no_gpu(fake_torch(), [])).fix == "make setup TORCH=cuda"
    finding = next(doctor._no_gpu(fake_torch(cuda="13.0"), ["the driver is too old"]))
    assert "the driver is too old" in finding.text
    assert "CUDA 13.0" in finding.fix


def test_only_torch_is_imported():
    code = (
        "import sys; from dpo_lightning.commands.doctor import main; main([])\n"
        "print({'lightning', 'transformers', 'peft', 'bitsandbytes', 'gguf'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "set()"
