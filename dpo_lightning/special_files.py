"""Pipes, sockets and devices in place of a file, found before they are opened, which may block for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""File types by the name that messages use."""


def real_path(path: str | Path) -> Path:
    """Return a path without links; unlike `Path.resolve`, also where a link leads back to itself."""
    return Path(os.path.realpath(path))


def is_file(path: str | Path) -> bool:
    """Whether a path is a file; unlike `Path.is_file`, also for a name that is too long for one."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def special_kind(path: str | Path) -> str:
    """Return `a pipe`, `a socket` or `a device`; empty for files, folders and missing paths. Links are followed.

    Raises:
        OSError: the path cannot be examined for another reason than that it is missing.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL in the path is a ValueError
        return ""
    return KINDS.get(stat.S_IFMT(mode), "")


def check_not_special(path: str | Path) -> None:
    """Refuse a pipe, a socket or a device before it is opened in place of a file.

    Raises:
        OSError: it is one, or it cannot be examined; `strerror` is the reason.
    """
    if kind := special_kind(path):
        raise OSError(None, f"expected a file, found {kind}")
