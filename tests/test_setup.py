"""Set-up installs what the locks list, whatever newer releases are on offer and however old the Python's pip is."""

import ensurepip
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.toy_setup import PYTHON, ROOT, Toy

LOCKED = {"torch": "1.0+cpu", "backend": "1.0", "toy": "1", "pip": version("pip")}
COVER = "Provides-Extra: toml\nRequires-Dist: parser>=1; extra == 'toml'\n"
TESTS = {"runner": "1.0", "cover": "1.0", "parser": "1.0"}


@pytest.fixture
def new(tmp_path):
    return Toy(tmp_path)


def times(folder):
    """When each file was last written or changed."""
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in sorted(folder.rglob("*"))}


def find_oldest_pip(new):
    """A Python whose environments begin with the oldest pip that any release of it brings."""
    wheels = list(Path(sys.prefix, "oldest-pip").glob("pip-*.whl"))
    if not wheels:
        pytest.skip(f"the oldest pip is not there: `make test` fetches it into {sys.prefix}/oldest-pip")
    shutil.copy(wheels[0], new.index)
    return {"PYTHON": str(ROOT / ".ci" / "python-with-oldest-pip"), "BASE_PYTHON": PYTHON}, wheels[0].name.split("-")[1]


@pytest.mark.parametrize("pip", ["bundled", "oldest"])
def test_newer_releases_of_everything_change_nothing(new, pip):
    python, release = ({}, ensurepip.version()) if pip == "bundled" else find_oldest_pip(new)
    subprocess.run([python.get("PYTHON", PYTHON), "-m", "venv", new.venv], check=True, env=new.environment(**python))
    assert new.packages()["pip"] == release
    shutil.rmtree(new.venv)
    code, said = new.install("requirements/test.lock", environment=python)
    assert code == 0, said
    assert new.packages() == LOCKED | TESTS

    before = times(new.venv)
    assert new.install("requirements/test.lock") == new.install() == (0, "")
    assert times(new.venv) == before


def test_further_locks_are_added(new):
    assert new.install()[0] == 0
    assert new.packages() == LOCKED
    code, said = new.install("requirements/test.lock")
    assert code == 0, said
    assert new.packages() == LOCKED | TESTS
    assert new.install() == (0, "")


def test_a_gap_in_the_locks_is_named(new):
    new.lock(
        "test", new.package("runner", metadata="Requires-Dist: cover[toml]>=1\n"), new.package("cover", metadata=COVER)
    )
    code, said = new.install("requirements/test.lock")
    assert code == 1
    assert "cover 1.0 requires parser>=1; extra == 'toml'; the locks have none" in said.replace('"', "'")


def test_settings_that_would_install_something_else(new, tmp_path):
    """What a user or a site sets for other projects: a constraint, hashes for everything, the user's own folder."""
    (tmp_path / "constraint.txt").write_text("cover==2.0\n")
    (tmp_path / "more.txt").write_text("parser==2.0\n")
    settings = f"[global]\nconstraint = {tmp_path}/constraint.txt\nuser = true\nrequire-hashes = true\n"
    (tmp_path / "pip.conf").write_text(settings)
    own = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_REQUIREMENT": str(tmp_path / "more.txt")}
    own |= {"PIP_TARGET": str(tmp_path / "target"), "PIP_ROOT": str(tmp_path / "root"), "PIP_DRY_RUN": "1"}
    code, said = new.install("requirements/test.lock", environment=own)
    assert code == 0, said
    assert new.packages() == LOCKED | TESTS


def test_an_activated_environment_is_made_anew(new):
    """`python3` is then the environment's own."""
    assert new.install()[0] == 0
    new.edit("requirements/cpu.lock")
    path = f"{new.venv}/bin:{os.environ['PATH']}"
    code, said = new.install(environment={"PATH": path, "PYTHON": "python3"})
    assert code == 0, said
    assert Path(new.venv, "bin", "python").resolve() == Path(PYTHON).resolve()
    assert new.packages() == LOCKED


def test_a_link_to_another_disk(new, tmp_path):
    (tmp_path / "scratch").mkdir()
    new.venv.symlink_to(tmp_path / "scratch")
    assert new.install()[0] == 0
    new.edit("requirements/cpu.lock")
    (tmp_path / "scratch" / "left").touch()
    code, said = new.install()
    assert code == 0, said
    assert new.venv.is_symlink()
    assert new.packages() == LOCKED
    assert not (tmp_path / "scratch" / "left").exists()


@pytest.mark.parametrize("why", ["none is on offer", "its hash is not listed"])
def test_the_cuda_build_where_the_cpu_wheel_cannot_be_had(new, why):
    wheel = next(new.index.glob("torch-1.0+cpu-*.whl"))
    if why == "none is on offer":
        wheel.unlink()
    else:
        new.edit("requirements/cpu.lock", new.digest(wheel), "0" * 64)
    code, said = new.install(environment={"TORCH": "cpu"})
    assert code == 1
    assert "could not install the CPU build of torch" in said
    code, said = new.install(environment={"TORCH": "auto"})
    assert code == 0, said
    assert new.packages() == LOCKED | {"torch": "1.0"}
    assert new.install(environment={"TORCH": "auto"}) == (0, "")


def test_two_at_once(new):
    with new.start() as one, new.start() as other:
        said = sorted((one.communicate()[0], other.communicate()[0]), key=len)
    assert (one.returncode, other.returncode) == (0, 0), said
    assert said[0] == f"setup: waiting for another setup of {new.venv}\n"
    assert new.packages() == LOCKED


def test_a_folder_of_someone_else(new):
    new.venv.mkdir()
    (new.venv / "thesis.tex").touch()
    code, said = new.install()
    assert (code, said) == (
        1,
        f"setup: {new.venv} was not made by this script: delete it, or name another: make setup VENV=path\n",
    )
    assert [path.name for path in new.venv.iterdir()] == ["thesis.tex"]


def test_a_place_where_nothing_can_be_written(new):
    new.venv.parent.joinpath("file").touch()
    new.venv = new.root / "file" / "venv"
    assert new.install() == (1, f"setup: nothing can be written in {new.venv}\n")
