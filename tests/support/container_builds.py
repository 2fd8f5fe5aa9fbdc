"""Images and SIFs of this project, built by containers/build.sh without a daemon or a registry, and runs in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "containers" / "build.sh"
MAKE_BASE = ROOT / "tests" / "containers" / "make-base"
INSTALL = ".ci/install-container-tools installs it"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
STRANGER = 12345
"""A UID that no file of passwords knows."""

# Where tests themselves run in a container: no cgroup can be made and no limit raised.
BUILD_FLAGS = "--isolation=chroot --pull-never --no-cache"
RUN_FLAGS = (
    "--rm",
    "--read-only",
    "--passwd=false",
    "--network=none",
    "--cgroups=disabled",
    "--ulimit=nproc=4096:4096",
)
STORAGE = '[storage]\ndriver = "overlay"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
WITHOUT_CGROUPS = 'mount --make-rprivate / && umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'


def require(*tools: str) -> None:
    """Skip the test, by name, where a tool or root's rights are missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: {INSTALL}")
    if os.geteuid():
        pytest.skip("root builds images here")


def check(command: Sequence[object], **options: object) -> str:
    """What a command says; if it fails, all that it said is the error."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


@dataclass(frozen=True)
class Builds:
    """A folder that holds the storage of images and the SIF, made once for all processes that test."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of buildah, podman and build.sh."""
        own = {"CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"), "TMPDIR": str(self.folder)}
        return {**os.environ, **own, "ENGINE": "buildah"}

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """One process at a time makes the same thing here."""
        with FileLock(self.folder / f"{what}.lock"):
            yield

    def make_base(self) -> str:
        """The name and digest of the base image, with which the storage begins."""
        made = self.folder / "base"
        with self.locked("base"):
            if not made.exists():
                (self.folder / "storage.conf").write_text(STORAGE.format(folder=self.folder))
                made.write_text(check([MAKE_BASE, "localhost/base"], env=self.environment).splitlines()[-1])
        return made.read_text()

    def make_image(self, name: str) -> None:
        """Build the image of the CPU lock, with the settings of the pip that set this environment up."""
        settings = self.folder / "pip.conf"
        lines = ["[global]", "cert = /run/secrets/ca.pem", "timeout = 180", *find_indexes()]
        settings.write_text("\n".join([*lines, ""]))
        given = {"BASE": self.make_base(), "IMAGE": name, "TORCH": "cpu", "PIP_CONF": str(settings)}
        given |= {"CA_BUNDLE": str(CERTIFICATES), "BUILD_FLAGS": BUILD_FLAGS}
        wheels = os.environ.get("PIP_FIND_LINKS", "")
        if Path(wheels).is_dir() and wheels:
            given["WHEELS"] = wheels
        check([BUILD, "image"], env=self.environment | given)

    def make_sif(self, image: str, sif: Path) -> None:
        """Make a SIF out of an image."""
        check([BUILD, "sif"], env=self.environment | {"IMAGE": image, "SIF": str(sif)})

    def inspect(self, image: str) -> dict[str, Any]:
        """All that buildah knows of an image: its ids, and under "OCIv1" its configuration."""
        return json.loads(check(["buildah", "inspect", "--type", "image", image], env=self.environment))

    def run(
        self, image: str, *arguments: object, mounts: Mapping[Path, str] | None = None, flags: Sequence[str] = ()
    ) -> str:
        """Run a container: no network, a root file system that is read-only, and a UID without a name."""
        binds = [f"--volume={source}:{target}" for source, target in (mounts or {}).items()]
        limit = check(["bash", "-c", "ulimit -Hn"]).strip()
        podman = ["podman", "run", *RUN_FLAGS, f"--ulimit=nofile={limit}:{limit}", f"--user={STRANGER}:{STRANGER}"]
        command = [*podman, *binds, *flags, image, *arguments]
        return check(["unshare", "-m", "bash", "-c", WITHOUT_CGROUPS, "bash", *command], env=self.environment)


def find_indexes() -> Iterator[str]:
    """Yield lines of a pip.conf: where packages come from, as far as variables say so."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        if name in os.environ:
            yield f"{name.removeprefix('PIP_').lower().replace('_', '-')} = {os.environ[name]}"


def run_outside(*arguments: object) -> str:
    """Run a command of this checkout, without a container."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return check([sys.executable, "-m", "dpo_lightning", *arguments], env=os.environ | variables, cwd=ROOT)
