"""Pipes, sockets and devices in place of a file: found before they are opened, which may block for ever."""

from __future__ import annotations

import stat
from pathlib import Path

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


def check_not_special(path: str | Path) -> None:
    """Refuse a pipe, a socket or a device before it is opened in place of a file.

    Raises:
        OSError: it is one, or it cannot be looked at; `strerror` is the reason.
    """
    if kind := special_kind(path):
        raise OSError(None, f"{kind} where a file is due")
