"""A data path on disk, or the reason why it cannot be read."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import re
import stat
from pathlib import Path

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import special_kind
from dpo_lightning.terminal import quote

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".gz")
MAX_LISTED = 10_000
SHOWN_NAMES = 3
LONGEST_SHOWN = 200


def display_name(path: str) -> str:
    """The path as it is printed: bytes that are no UTF-8 and control characters are escaped."""
    return quote(path)


def check_path(path: str) -> None:
    """Make sure that `path` is a regular file which may be opened.

    Raises:
        UserError: 64 for a URL, 66 for what is not there or is no file.
    """
    if SCHEME.match(path) or "\0" in path:
        raise UserError(
            ExitCode.CONFIG,
            Problem("a URL cannot be read as data" if "\0" not in path else "a path holds NUL", text=path),
            fix="download it first and name the file, or use hf://org/name for a set of the hub",
        )
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise _no_such_file(path, error) from None
    if stat.S_ISDIR(mode):
        names = [name for name in _listing(Path(path)) if name.endswith(DATA_SUFFIXES)]
        raise _missing(path, "a folder where a file is due", f"name its files{_examples(names)}")
    if not stat.S_ISREG(mode):
        kind = special_kind(path) or "no regular file"
        raise _missing(path, f"{kind} where a file is due", "write the rows to a file first")


def read_bytes(path: str, size: int = -1) -> bytes:
    """The first `size` bytes of a file, or all of them.

    Raises:
        UserError: 64 or 66 (see `check_path`), 74 when the disk fails.
    """
    check_path(path)
    try:
        with Path(path).open("rb") as file:
            return file.read(size)
    except PermissionError:
        raise _unreadable(path) from None
    except OSError as error:
        raise UserError(
            ExitCode.IO,
            Problem(f"cannot read: {error.strerror}", where=display_name(path)),
            fix="check the disk, then run the command again",
        ) from None


def _missing(path: str, what: str, fix: str) -> UserError:
    return UserError(ExitCode.INPUT_MISSING, Problem(what, where=display_name(path) or "''"), fix=fix)


def _no_such_file(path: str, error: OSError) -> UserError:
    if isinstance(error, PermissionError):
        return _unreadable(path)
    if error.errno == errno.ELOOP:
        return _missing(path, "a link that leads back to itself", "name the file that it should lead to")
    if error.errno == errno.ENAMETOOLONG:
        return _missing(path[:LONGEST_SHOWN] + "…", "a path that is too long", "name a file that exists")
    if Path(path).is_symlink():
        target = display_name(str(Path(path).readlink()))
        return _missing(path, f"a link to {target}, which is not there", "name the file itself")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _missing(path, "no such file", _nearest(path))
    return _missing(path, f"cannot read: {error.strerror}", "name a file that can be read")


def _unreadable(path: str) -> UserError:
    """Who may read it: the path itself, or the first folder on the way that bars it."""
    barred = Path(path)
    for parent in reversed(Path(path).parents):
        if _is_folder(parent) and not os.access(parent, os.X_OK):
            barred = parent
            break
    try:
        status = barred.stat()
    except OSError:
        return _missing(path, "not readable", "make it readable")
    return _missing(
        path,
        f"not readable for {_user(os.geteuid())}: {display_name(str(barred))} belongs to "
        f"{_user(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o}",
        "make it readable (chmod, chown), or name another file",
    )


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _nearest(path: str) -> str:
    """What is there instead: the closest names beside the first part of the path that does not exist."""
    missing = Path(path)
    while not _is_folder(missing.parent) and missing.parent != missing:
        missing = missing.parent
    names = _listing(missing.parent)
    close = difflib.get_close_matches(missing.name, names, SHOWN_NAMES, 0.6)
    if close:
        fix = "did you mean " + " or ".join(display_name(str(missing.parent / name)) for name in close) + "?"
    else:
        files = [name for name in names if name.endswith(DATA_SUFFIXES)]
        has = _examples(files) or " no data files"
        fix = f"name a file that exists; {display_name(str(missing.parent))} has{has}"
    if HUB_NAME.fullmatch(path) and not path.endswith(DATA_SUFFIXES):
        fix += f" (a set of the hub is asked for as hf://{path})"
    return fix


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _listing(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, MAX_LISTED))
    except OSError:
        return []


def _examples(names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(display_name(name) for name in names[:SHOWN_NAMES])
    return f": {shown}" + (", ..." if len(names) > SHOWN_NAMES else "")
