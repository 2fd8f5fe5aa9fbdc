"""Pipes, sockets and devices where a file is due: opening one may wait for ever, so its kind is looked at first."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpo_lightning.errors import ExitCode, Problem, UserError

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(path: str | Path) -> str:
    """`a pipe`, `a socket` or `a device`; empty for files, for folders, and for what is not there. Links are followed.

    Raises:
        OSError: it cannot be looked at for another reason than that it is not there.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL in the path is a ValueError
        return ""
    return KINDS.get(stat.S_IFMT(mode), "")


def refuse_special_values(value: Any, key: str) -> None:
    """See that no text of a config leads to a pipe, a socket or a device: the parser opens what is a path.

    Args:
        value: of a key; also a list or a mapping.
        key: dotted, or the name of a config file.

    Raises:
        UserError: 66, one does. An output folder is left to its own check.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            refuse_special_values(part, str(name) if key.endswith((".yaml", ".yml")) else f"{key}.{name}")
    elif isinstance(value, list):
        for part in value:
            refuse_special_values(part, key)
    elif isinstance(value, str) and key != "output_dir" and (kind := special_kind(value)):
        what = Problem(f"{kind} where a file is due", key, value)
        raise UserError(ExitCode.INPUT_MISSING, what, fix="write it to a file first, and name that")


def refuse_special_arguments(args: Sequence[str]) -> None:
    """The same of a command line.

    Raises:
        UserError: 66.
    """
    for flag, following in pairwise([*args, ""]):
        key, equals, value = flag.removeprefix("--").partition("=")
        if flag.startswith("--"):
            refuse_special_values(value if equals else following, key)
