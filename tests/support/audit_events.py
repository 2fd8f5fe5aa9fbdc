"""What a process starts, connects to, writes and reads, as the interpreter's audit events tell; paths are relative."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.", "webbrowser.")
CONNECTED = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.", "ftplib.", "smtplib.")
CHANGED = (
    *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod"),
    *("os.chown", "os.putenv", "shutil."),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
RANDOM = re.compile(r"(?<=^tmp/)[^/]+|(?<=dpo_lightning-)\w+|\d+")
"""Parts of temporary names, and numbers, which differ between two runs of one command."""

OUTSIDE = "outside"
"""A folder beside the user's own, in which no command has any business."""


def make_recorder(home: Path, record: Callable[[str], None]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that hands on what a command does beyond reading its files.

    Args:
        home: paths are recorded as they are from this folder.
        record: takes an event as a line.
    """

    def name(path: Any) -> str:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
        return RANDOM.sub("N", os.path.relpath(os.path.join(home, text), home))  # noqa: PTH118

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and not isinstance(args[0], int) and args[0] is not None:
            path, mode, flags = args
            # A folder is opened for files without a name, which leave nothing.
            if os.fsdecode(path) == os.devnull or os.path.isdir(path):  # noqa: PTH112
                return
            if set(str(mode or "")) & set("wax+") or (isinstance(flags, int) and flags & WRITES):
                record(f"write {name(path)}")
            elif name(path).startswith(OUTSIDE):
                record(f"read {name(path)}")
        elif event.startswith(STARTED + CONNECTED):
            record(f"{event} {RANDOM.sub('N', repr(args))[:200]}")
        elif event.startswith(CHANGED) and (args[-1] == -1 or not isinstance(args[-1], int)):
            # Not one relative to an open folder: `shutil.rmtree` was recorded by its path.
            record(f"{event} {name(args[0])}")

    return hook
