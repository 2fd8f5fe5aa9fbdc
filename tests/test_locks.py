"""The locks are complete for every Python and processor, extras included."""

import importlib.util
import re
import subprocess
import sys

import pytest
from support.toy_setup import ROOT

SOURCE = ROOT / "requirements" / "check.py"
SPEC = importlib.util.spec_from_file_location("check", SOURCE)
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

LOCKS = [ROOT / "requirements" / f"{name}.lock" for name in ("pip", "cpu", "test")]
EXTRAS = ("test", "dev")
MACHINES = [(python, machine) for python in ("3.11", "3.12", "3.13", "3.14") for machine in ("x86_64", "aarch64")]


def environment(python, machine):
    return {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}


@pytest.mark.parametrize(("python", "machine"), MACHINES)
def test_the_locks_are_complete(python, machine):
    there = environment(python, machine)
    pins = check.read_pins(LOCKS, there)
    assert len(pins) > 90
    assert list(check.find_gaps(pins, check.read_project(*EXTRAS), there)) == []


@pytest.mark.parametrize("name", ["coverage", "jsonargparse", "typeshed-client", "torch", "markupsafe"])
def test_each_package_is_missed(name):
    """Of the project, of its extras, of a package, and of a package's extra (jsonargparse[signatures])."""
    pins = check.read_pins(LOCKS, {})
    del pins[name]
    gaps = list(check.find_gaps(pins, check.read_project(*EXTRAS), {}))
    assert any(re.search(rf"requires {name}\b.*; the locks have none$", gap) for gap in gaps), gaps


def test_a_version_that_does_not_fit():
    pins = check.read_pins(LOCKS, {}) | {"coverage": "1.0"}
    (gap,) = check.find_gaps(pins, check.read_project(*EXTRAS), {})
    assert re.fullmatch(r"pytest-cov .* requires coverage\[toml\]>=.*; the locks have 1\.0", gap)


def test_both_builds_agree():
    """But for torch, and what the CUDA build brings."""
    cpu, cuda = (check.read_pins([ROOT / "requirements" / f"{name}.lock"], {}) for name in ("cpu", "cuda"))
    assert cpu.pop("torch") == cuda.pop("torch") + "+cpu"
    assert cpu.items() <= cuda.items()
    assert all(re.match("cuda|nvidia|triton", name) for name in cuda.keys() - cpu.keys())


def test_pip_is_not_imported():
    """In a process that has imported pip, setuptools takes no part in `distutils`, and torch.compile fails."""
    ran = subprocess.run(
        [sys.executable, "-c", "import sys, check; print('pip' in sys.modules)"],
        cwd=SOURCE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "False\n"


def test_what_is_installed_is_compared(tmp_path):
    """Without the network: as set-up runs it, on a lock whose package is not installed in that version."""
    lock = tmp_path / "some.lock"
    lock.write_text("pytest==0.1 \\\n    --hash=sha256:00\nno-such-package==1.0\n")
    ran = subprocess.run([sys.executable, SOURCE, lock], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "ERROR: pytest 0.1 is pinned; installed is " in ran.stderr
    assert "ERROR: no-such-package 1.0 is pinned; installed is none" in ran.stderr
