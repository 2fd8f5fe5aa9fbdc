"""Faults of a machine without being its administrator: full disks, limits of memory and files, unwritable folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def needs(tool: str) -> Any:
    """A mark for a test that needs a program; it is skipped where there is none, or where it may not be used."""
    allowed = shutil.which(tool) is not None
    if allowed and tool == "unshare":
        allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
    return pytest.mark.skipif(not allowed, reason=f"{tool} is missing or not allowed")


def run_in_shell(script: str, arguments: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m dpo_lightning ARGUMENTS`, written as "$@" in a shell script."""
    command = [sys.executable, "-m", "dpo_lightning", *map(str, arguments)]
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", script, "bash", *command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        **options,
    )


def run_with_small_disk(folder: Path, size: str, arguments: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Run a command while a small disk is mounted on a folder, whose files are copied to `folder-after`."""
    folder.mkdir(exist_ok=True)
    after = folder.with_name(f"{folder.name}-after")
    script = f'mount -t tmpfs -o size={size} none {folder} && "$@"; code=$?; cp -r {folder} {after}; exit $code'
    return run_in_shell(f"unshare -rm bash -c '{script}' bash \"$@\"", arguments)
