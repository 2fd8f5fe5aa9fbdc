"""`doctor`: versions, devices, precision, and how to fix what is missing; with `--config`, a run's memory."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import tomllib
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpo_lightning.commands.fetch_model import damage
from dpo_lightning.config.files import config_paths
from dpo_lightning.console import RaisingArgumentParser
from dpo_lightning.data.cache.cache_folder import clear_folder, measure_folder
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.hardware import machine_memory, read_cgroup
from dpo_lightning.models.missing_folders import EMBEDDED
from dpo_lightning.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

PROJECT = "dpo-lightning"
MALWARE = ("2.6.2", "2.6.3")
"""Releases of lightning that stole credentials when imported; withdrawn (GHSA-w37p-236h-pfx3)."""

REINSTALL = "make setup"
DISK_LOW = 5e9
"""Free bytes below which a run with a few checkpoints may fail: one of the embedded model takes 1.6 GB."""

CACHE = Path("outputs/encoded")
"""The folder of encoded rows of runs in `outputs/`."""

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        status: `missing` for something required that is absent or unusable, `note` for what does not stop a run.
        text: what was found.
        fix: the command or the step that repairs it.
    """

    status: Literal["ok", "missing", "note"]
    text: str
    fix: str = ""

    def __str__(self) -> str:
        """Format the line as printed, with the fix on a second line."""
        return f"{self.status:<8} {self.text}" + (f"\n{'':<8} fix: {self.fix}" if self.fix else "")


def main(argv: list[str]) -> int:
    """Print what this machine has and lacks; return 0 if everything required is there, else 69."""
    if config_paths(argv):
        from dpo_lightning.commands.estimate import main as estimate

        return estimate(argv)
    parser = RaisingArgumentParser(prog="python -m dpo_lightning doctor", description=__doc__)
    parser.add_argument("--config", help="a recipe, with any options of fit: estimate the memory of that run")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"a folder of encoded rows (default: {CACHE})")
    parser.add_argument("--clear_cache", action="store_true", help="only remove the encoded rows of this folder")
    args = parser.parse_args(argv)
    if args.clear_cache:
        return _clear(args.cache)
    findings = []
    for finding in _examine(args.cache):
        # Line by line: a torch that kills the process leaves at least what was found before it.
        print(escape_controls(str(finding)), flush=True)
        findings.append(finding)
    missing = sum(finding.status == "missing" for finding in findings)
    print(f"\n{missing} missing" if missing else "\nnothing required is missing")
    return int(ExitCode.DEVICE) if missing else 0


def _clear(folder: Path) -> int:
    """Remove the encoded rows of a folder, and print what they took."""
    entries, size = measure_folder(folder)
    try:
        clear_folder(folder)
    except OSError as error:
        problem = Problem(f"the folder cannot be cleared: {error.strerror}", "cache", str(folder))
        raise UserError(ExitCode.OUTPUT, problem, fix=f"rm -r {shlex.quote(str(folder))}") from None
    print(escape_controls(f"removed {_count_entries(entries)}, {size / 1e6:,.0f} MB, from {folder}"))
    return 0


def _count_entries(entries: int) -> str:
    return f"{entries:,} entr{'y' if entries == 1 else 'ies'} of encoded rows"


def _examine(cache: Path) -> Iterator[Finding]:
    yield Finding("ok", f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    if (version := _version("lightning")) in MALWARE:
        text = f"a safe lightning: {version} is malware that steals credentials when it is imported"
        fix = f"replace all passwords and tokens on this machine, delete the environment, then {REINSTALL}"
        yield Finding("missing", text, fix)
        return  # importing anything else from this environment could run it
    yield from _packages()
    yield from _machine()
    yield from _torch()
    yield _model()
    yield _disk()
    yield from _cache(cache)


def _packages() -> Iterator[Finding]:
    """Compare installed versions with the project's requirements, without importing the packages."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("missing", "packaging, which reads the versions", REINSTALL)
        return
    for requirement in map(Requirement, _requirements()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if not version:
            yield Finding("missing", str(requirement.name), REINSTALL)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding("missing", f"{requirement.name}{requirement.specifier}: {version} is here", REINSTALL)
        else:
            yield Finding("ok", f"{requirement.name} {version}")


def _requirements() -> list[str]:
    """Return the project's requirements, from this checkout or from the installed package."""
    checkout = Path(__file__).parents[2] / "pyproject.toml"
    if checkout.is_file():
        return list(tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]["dependencies"])
    return metadata.requires(PROJECT) or []


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _machine() -> Iterator[Finding]:
    cores, quota = len(os.sched_getaffinity(0)), read_cgroup("cpu")
    share = f", of which the cgroup grants {quota:g}" if quota and quota < cores else ""
    yield Finding("ok", f"{cores} CPU cores{share}")
    if share:
        threads = max(1, int(quota))
        yield Finding(
            "note",
            "a run is slower with more threads than the cgroup grants cores",
            f"export OMP_NUM_THREADS={threads}",
        )
    yield Finding("ok", f"{machine_memory() / 2**30:.1f} GiB of memory")


def _torch() -> Iterator[Finding]:
    try:
        with warnings.catch_warnings(record=True) as caught:  # torch only warns about a driver that is too old
            warnings.simplefilter("always")
            import torch

            from dpo_lightning.hardware import choose_precision

            gpus = list(_gpus(torch))
            precision, reason = choose_precision()
    except Exception as error:  # a broken torch raises anything; the other findings are still reported
        yield Finding("missing", f"torch cannot be used: {_first_line(error)}", REINSTALL)
        return
    yield from gpus or _no_gpu(torch, [_first_line(warning.message) for warning in caught])
    yield Finding("ok", f"precision {precision}: {reason}")


def _gpus(torch: ModuleType) -> Iterator[Finding]:
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            yield Finding("ok", f"GPU {i}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "GPU: Apple, through Metal")


def _no_gpu(torch: ModuleType, warned: list[str]) -> Iterator[Finding]:
    if not NVIDIA_DRIVER.exists():
        yield Finding("note", "no GPU: everything runs on the CPU")
    elif torch.version.cuda is None:
        yield Finding("note", "an NVIDIA GPU that this build of torch cannot use", "make setup TORCH=cuda")
    else:
        reason = f": {warned[0]}" if warned else ""
        fix = f"nvidia-smi shows the driver: CUDA {torch.version.cuda} needs a newer one, or no GPU is granted"
        yield Finding("note", f"an NVIDIA driver, but torch sees no GPU{reason}", fix)


def _first_line(message: object) -> str:
    return next(iter(str(message).strip().splitlines()), type(message).__name__)


def _model() -> Finding:
    fetch, folder = "python -m dpo_lightning fetch-model", Path(EMBEDDED)
    if not folder.exists():
        return Finding("note", f"no embedded model in {folder}", fetch)
    if problem := damage(folder):
        return Finding("missing", f"the embedded model: in {folder}, {problem}", f"rm -r {folder} && {fetch}")
    return Finding("ok", f"embedded model in {folder}")


def _cache(folder: Path) -> Iterator[Finding]:
    entries, size = measure_folder(folder)
    if entries:
        where = "" if folder == CACHE else f" --cache {shlex.quote(str(folder))}"
        clear = f"python -m dpo_lightning doctor{where} --clear_cache removes them"
        yield Finding("ok", f"{_count_entries(entries)} in {folder}, {size / 1e6:,.0f} MB; {clear}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    low = free < DISK_LOW
    text = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    return Finding("note", text, "free some space, or --output_dir on another disk") if low else Finding("ok", text)
