"""requirements/gather.py: what a machine without network lacks, downloaded by the locks' hashes and divided by size."""

import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from support.toy_setup import ROOT, Toy

sys.path.insert(0, str(ROOT / "requirements"))
import gather

sys.path.pop(0)

THERE = {"python_version": "3.12", "python_full_version": "3.12.0", "platform_machine": "x86_64"}


def test_packages_are_read_from_pips_list():
    text = "# a comment\nNumPy==2.5.2\nhf_xet\n-e git+x\nown @ file:///own\n\ntorch==2.11.0+cu130\n"
    assert gather.read_packages(text) == {"numpy": "2.5.2", "hf-xet": "", "own": "file:///own", "torch": "2.11.0+cu130"}


def missing(there, *wanted):
    return set(gather.find_missing(there, map(Requirement, wanted), THERE))


def test_what_is_absent_is_missing_with_all_that_it_requires():
    assert missing({}, "tensorboard>=2") >= {"tensorboard", "grpcio", "markdown", "werkzeug", "markupsafe"}
    assert missing({"tensorboard": "2.99"}, "tensorboard>=2") == set()
    assert missing({"tensorboard": ""}, "tensorboard>=2") == set()


def test_an_older_version_is_missing_and_its_requirements_that_are_not_there():
    found = missing({"tensorboard": "1.0", "grpcio": "1.99", "markupsafe": "3.0"}, "tensorboard>=2")
    assert "tensorboard" in found
    assert not {"grpcio", "markupsafe"} & found


def test_an_extra_of_what_is_there_may_be_missing():
    assert missing({"jsonargparse": "99.0"}, "jsonargparse>=4") == set()
    assert "docstring-parser" in missing({"jsonargparse": "99.0"}, "jsonargparse[signatures]>=4")


def test_torch_is_never_gathered():
    assert "torch" not in missing({}, "torchmetrics>=1", "torch>=2")


def test_another_python_and_processor_decide():
    assert missing({}, "numpy; python_version < '3.12'") == set()
    assert missing({}, "numpy; platform_machine == 'aarch64'") == set()
    assert missing({}, "numpy; python_version >= '3.12'") == {"numpy"}


def test_parts_are_below_the_size(tmp_path):
    files = []
    for number, size in enumerate([70, 40, 30, 20, 10]):
        files.append(tmp_path / f"{number}.whl")
        files[-1].write_bytes(b"x" * size)
    parts = gather.divide(files, 60)
    assert [[file.name for file in part] for part in parts] == [["0.whl"], ["1.whl", "3.whl"], ["2.whl", "4.whl"]]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A project whose locks have runner, cover and parser, with an index of made-up wheels."""
    made = Toy(tmp_path)
    for key, value in made.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(gather, "LOCKS", [made.root / "requirements" / f"{name}.lock" for name in ("cpu", "test")])
    monkeypatch.setattr(gather, "read_project", lambda: [Requirement("runner"), Requirement("cover>=1")])
    monkeypatch.chdir(tmp_path)
    return made


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gather.py", *arguments])
    gather.main()


def test_missing_wheels_are_downloaded_and_divided(toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "have.txt").write_text("cover==1.0\n")
    run(monkeypatch, "have.txt", "--add", "parser")
    found = {path.name for path in (tmp_path / "wheels" / "part-1").iterdir()}
    assert found == {f"{name}-1.0-py3-none-any.whl" for name in ("parser", "runner")}
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == ["part-1"]
    assert "parser, runner" in capsys.readouterr().out


def test_a_wheel_that_is_not_the_locked_one_is_refused(toy, tmp_path, monkeypatch):
    toy.edit("requirements/test.lock", "sha256:", "sha256:0")
    (tmp_path / "have.txt").write_text("")
    with pytest.raises(subprocess.CalledProcessError):
        run(monkeypatch, "have.txt")


@pytest.mark.parametrize("given", [["have.txt", "--add", "nothing-known"], ["have.txt", "--out", "."]])
def test_what_cannot_be_is_said_in_a_line(given, toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "have.txt").write_text("cover\n")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *given)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_nothing_may_be_missing(toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "have.txt").write_text("cover==1.0\nrunner\n")
    run(monkeypatch, "have.txt")
    assert capsys.readouterr().out == "nothing is missing\n"
    assert not (tmp_path / "wheels").exists()
