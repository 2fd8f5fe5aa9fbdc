"""A toy project with locks, a package index of made-up wheels, and its set-up by requirements/install.sh."""

import base64
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = sys._base_executable
"""The Python that environments are made with: the one below that of the tests."""

BACKEND = """
import os, pathlib, time, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if os.path.exists("broken"):
        raise SystemExit("the backend is broken")
    if os.path.exists("pause"):
        pathlib.Path("reached").write_text(str(os.getpid()))
        time.sleep(300)
    with zipfile.ZipFile(pathlib.Path(wheel_directory, "toy-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("toy.pth", os.getcwd())
        wheel.writestr("toy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n")
        wheel.writestr("toy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("toy-1.dist-info/RECORD", "toy.pth,,\\n")
    return "toy-1-py3-none-any.whl"
"""
"""A build backend that fails, or stays in the middle, where a file asks for it."""

PYPROJECT = """
[build-system]
requires = ["backend"]
build-backend = "backend"
[project]
name = "toy"
version = "1"
dependencies = ["torch>=1", "backend"]
"""


def write_wheel(folder, name, version, files, metadata=""):
    """A wheel with a RECORD of its files."""
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}"
    about = {"METADATA": head, "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files = {f"{info}/{key}": value.encode() for key, value in about.items()} | files
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((path, f"sha256={digest}", len(content)))
    rows.writerow((f"{info}/RECORD", "", ""))
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as wheel:
        for path, content in (files | {f"{info}/RECORD": record.getvalue().encode()}).items():
            wheel.writestr(path, content)
    return target


def write_pip(folder):
    """The pip of this environment, as a wheel."""
    pip = distribution("pip")
    left_out = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    paths = [path for path in pip.files if ".." not in path.parts and "__pycache__" not in path.parts]
    files = {str(path): path.locate().read_bytes() for path in paths if path.name not in left_out}
    return write_wheel(folder, "pip", pip.version, files)


class Toy:
    """The project's folder, with an index beside it in which each package has a newer release than the locked one."""

    def __init__(self, folder):
        self.root, self.index = folder / "project", folder / "index"
        self.venv = self.root / ".venv"
        (self.root / "requirements").mkdir(parents=True)
        self.index.mkdir()
        for name in ("install.sh", "check.py"):
            shutil.copy(ROOT / "requirements" / name, self.root / "requirements")
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        self.lock("pip", write_pip(self.index))
        write_wheel(self.index, "pip", "99", {"pip.py": b"raise SystemExit('not the locked pip')"})
        backend = self.package("backend", files={"backend.py": BACKEND.encode()})
        self.lock("cpu", self.package("torch", "1.0+cpu"), backend)
        self.lock("cuda", self.package("torch"), backend)
        needs = {
            "runner": "Requires-Dist: cover[toml]>=1\n",
            "cover": "Provides-Extra: toml\nRequires-Dist: parser>=1; extra == 'toml'\n",
            "parser": "",
        }
        self.lock("test", *(self.package(name, metadata=metadata) for name, metadata in needs.items()))

    def package(self, name, version="1.0", files=None, metadata=""):
        """A made-up package, with a newer release that nobody locked."""
        content = f"RELEASE = {version!r}".encode()
        write_wheel(self.index, name, "2.0", {f"{name}.py": b"raise SystemExit('not locked')"}, metadata)
        return write_wheel(self.index, name, version, files or {f"{name}.py": content}, metadata)

    @staticmethod
    def digest(wheel):
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    def lock(self, name, *wheels):
        """Write a lock of wheels, as requirements/relock.sh does."""
        lines = ""
        for wheel in wheels:
            package, version = wheel.name.split("-")[:2]
            lines += f"{package}=={version} \\\n    --hash=sha256:{self.digest(wheel)}\n"
        (self.root / "requirements" / f"{name}.lock").write_text(lines)

    def edit(self, path, old="", new="# another day\n"):
        """Replace a part of a file, or add a line: what was made with it is out of date."""
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new) if old else text + new)

    def environment(self, **more):
        """Where packages come from: the index alone, and no setting of this machine."""
        shutil.rmtree(self.index / "simple", ignore_errors=True)
        for wheel in self.index.glob("*.whl"):
            page = self.index / "simple" / wheel.name.split("-")[0] / "index.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            with page.open("a") as file:
                file.write(f'<a href="../../{wheel.name}#sha256={self.digest(wheel)}">{wheel.name}</a>\n')
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        own = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": (self.index / "simple").as_uri(),
            "PIP_NO_CACHE_DIR": "1",
        }
        return kept | own | {"PYTHON": PYTHON, "TORCH": "cpu"} | more

    def start(self, *extra, environment=None, **how):
        """The set-up as a process; `extra` are further locks."""
        command = ["requirements/install.sh", str(self.venv), *extra]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(command, cwd=self.root, env=self.environment(**environment or {}), **streams, **how)

    def install(self, *extra, **how):
        """The exit code of the set-up and what it said."""
        with self.start(*extra, **how) as process:
            said = process.communicate()[0]
        return process.returncode, said

    def tree(self):
        """What the environment consists of: path -> mode and content."""
        found = {}
        for path in sorted(self.venv.rglob("*")):
            name = str(path.relative_to(self.venv))
            if name in (".dpo-lightning.log", ".dpo-lightning.flock") or "__pycache__" in path.parts or path.is_dir():
                continue
            found[name] = path.readlink() if path.is_symlink() else (path.stat().st_mode, path.read_bytes())
        return found

    def packages(self):
        """What is installed: name -> version, without the setuptools that Python 3.11 brings."""
        code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
        command = [self.venv / "bin" / "python", "-c", code]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {
            name: version for name, version in (line.split("==") for line in listed.split()) if name != "setuptools"
        }
