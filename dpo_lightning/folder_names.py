"""Names in a run's folder, and a check of paths for output: none that a shell would have expanded, or unprintable."""

from __future__ import annotations

import re
from pathlib import Path

from dpo_lightning.errors import ExitCode, Problem, UserError

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
FINAL_MODEL = "final_model"
METRICS = "metrics.json"


LONGEST_NAME, LONGEST_PATH = 200, 3000
"""Bytes of a name and of a path for output: file systems take 255 and 4096, hidden names beside it take some of them.
"""

NULLS = ("null", "none")
"""What programs write for a path that is not set, in any case."""


def check_output_path(path: str, key: str, fix: str, *, file: bool = False) -> None:
    """Refuse a path that is empty, `null` or too long, or was probably meant for a shell to expand, by its text alone.

    Args:
        path: a file or folder that will be written.
        key: the option that names it.
        fix: a flag with another path.
        file: whether a file will be written, so that the path has to end in a name.

    Raises:
        UserError: 64, the path is refused.
    """
    if "\0" in path or not path.strip():
        raise UserError(ExitCode.CONFIG, Problem("not the name of a file or folder", key, path), fix=fix)
    if path.strip().lower() in NULLS:
        problem = Problem("null is not the name of a file or folder", key, path)
        raise UserError(ExitCode.CONFIG, problem, fix=f"{fix}, or ./{path.strip()} for a file or folder of this name")
    if file and Path(path).name in ("", ".."):
        raise UserError(ExitCode.CONFIG, Problem("expected the name of a file, found that of a folder", key, path), fix)
    if path.startswith("~") or re.search(r"\$[\w{]|://", path) or not path.isprintable():
        raise UserError(
            ExitCode.CONFIG,
            Problem("a path for output may not contain `~`, `$NAME`, `://` or unprintable characters", key, path),
            fix="write the full path (a shell expands `~` and `$NAME` outside of quotes)",
        )
    if len(path.encode()) > LONGEST_PATH or max(len(name.encode()) for name in path.split("/")) > LONGEST_NAME:
        what = f"a path for output has at most {LONGEST_PATH} bytes, and {LONGEST_NAME} between two slashes"
        raise UserError(ExitCode.CONFIG, Problem(what, key, path), fix=fix)


def unwritable_error(error: OSError, output: Path) -> UserError:
    """Make the error for a result that cannot be written to `--output`."""
    what = Problem(f"the file cannot be written: {error.strerror}", "--output", str(output))
    return UserError(ExitCode.OUTPUT, what, fix="choose another --output")
