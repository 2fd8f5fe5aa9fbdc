"""Checks of data paths, and errors that suggest the path that was probably meant."""

from __future__ import annotations

import difflib
import errno
import io
import itertools
import os
import re
import stat
from pathlib import Path
from typing import IO, Any

from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.special_files import special_kind
from dpo_lightning.terminal import quote

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
"""The beginning of a URL."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""`org/name`, as the hub writes the name of a data set."""

FORMATS = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".xlsx",
    ".parquet",
    ".arrow",
    ".feather",
)
DATA_SUFFIXES = (*FORMATS, ".zip", *(f"{name}{packed}" for name in FORMATS for packed in (".gz", ".bz2", ".xz")))
NO_DATA = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"))
"""Files with the suffix of data that describe a data set."""

NO_FILE = ("none", "false", "no", "off")
"""Words that are meant for null."""

SEPARATORS = re.compile(r"\s*[,;\s]\s*")
"""What stands between the files of a text that lists several."""

MAX_LISTED = 10_000
"""Entries of a folder that are read for a suggestion; a folder of a data set may have millions."""

MAX_SUGGESTIONS = 3
MIN_SIMILARITY = 0.6
"""The ratio of `difflib` from which a name is suggested for a missing one; 1 means that both are equal."""

BUFFER = 1 << 16
"""Bytes that are read from the disk at once, where less is needed."""

MAX_SHOWN = 200
"""Characters that an error quotes of a path that the operating system rejects as too long."""


def format_path(path: str) -> str:
    """Format a path for a message: bytes that are not UTF-8 and control characters are escaped."""
    return quote(path)


def is_data_name(name: str) -> bool:
    """Whether a file of this name probably contains rows."""
    return name.lower().endswith(DATA_SUFFIXES) and name not in NO_DATA and not name.startswith(".")


def check_path(path: str) -> None:
    """Check that `path` is a regular file, without opening it: opening a pipe would block.

    Raises:
        UserError: 64 for a URL or a NUL character, 66 if the path does not exist or is not a file.
    """
    if SCHEME.match(path) or "\0" in path:
        raise UserError(
            ExitCode.CONFIG,
            Problem("a URL cannot be read" if "\0" not in path else "the path contains a NUL character", text=path),
            fix="download the data and name the file, or use hf://org/name for a data set of the hub",
        )
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise _explain_failure(path, error) from None
    if stat.S_ISDIR(mode):
        names = list(filter(is_data_name, _list_names(Path(path))))
        raise input_error(path, "expected a file, found a folder", f"name the files in it{_format_names(names)}")
    if not stat.S_ISREG(mode):
        kind = special_kind(path) or "a special file"
        raise input_error(path, f"expected a file, found {kind}", "write the rows to a file first")


class _DataFile(io.RawIOBase):
    """A file whose read errors are `UserError`s: a decompressor would take an `OSError` for damaged data."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by `close`

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer) or 0
        except OSError as error:
            raise _read_error(self._path, error) from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and offset < 0:  # a damaged zip archive; the message is that of a file in memory
            raise ValueError(f"negative seek value {offset}")
        return self._file.seek(offset, whence)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        UserError: 64 or 66 as in `check_path`, 66 without permission, 74 if opening or, later, reading fails.
    """
    check_path(path)
    try:
        return io.BufferedReader(_DataFile(path), BUFFER)
    except PermissionError:
        raise permission_error(path) from None
    except OSError as error:
        raise _read_error(path, error) from None


def read_bytes(path: str, size: int = -1) -> bytes:
    """Read the first `size` bytes of a file; -1 reads all of them.

    Raises:
        UserError: as in `open_file`.
    """
    with open_file(path) as file:
        return file.read(size)


def _read_error(path: str, error: OSError) -> UserError:
    return UserError(
        ExitCode.IO,
        Problem(f"the file cannot be read: {error.strerror}", where=format_path(path)),
        fix="check the disk, then run the command again",
    )


def input_error(path: str, what: str, fix: str) -> UserError:
    """The error for a path that cannot be read."""
    return UserError(ExitCode.INPUT_MISSING, Problem(what, where=format_path(path) or "''"), fix=fix)


def _explain_failure(path: str, error: OSError) -> UserError:
    """Convert the error of `stat` into one that names the reason and a remedy."""
    if isinstance(error, PermissionError):
        return permission_error(path)
    if error.errno == errno.ELOOP:
        return input_error(path, "a symbolic link that points back to itself", "name the file instead of the link")
    if error.errno == errno.ENAMETOOLONG:
        return input_error(path[:MAX_SHOWN] + "…", "the path is too long", "name a file that exists")
    if Path(path).is_symlink():
        target = format_path(str(Path(path).readlink()))
        return input_error(
            path, f"a symbolic link to {target}, which does not exist", "name the file instead of the link"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return input_error(path, "no such file", _suggest_path(path))
    return input_error(path, f"the path cannot be read: {error.strerror}", "name a file that can be read")


def permission_error(path: str) -> UserError:
    """Return the error for a file without permission, with the owner and mode of what is closed to this user.

    That is the first folder of the path that may not be entered, or else the file.
    """
    closed = Path(path)
    for parent in reversed(Path(path).parents):
        if _is_folder(parent) and not os.access(parent, os.X_OK):
            closed = parent
            break
    try:
        status = closed.stat()
    except OSError:
        return input_error(path, "no permission to read the file", "make it readable (chmod, chown)")
    user, owner, mode = _get_user_name(os.geteuid()), _get_user_name(status.st_uid), stat.S_IMODE(status.st_mode)
    return input_error(
        path,
        f"no permission for {user} to read the file: "
        f"the owner of {format_path(str(closed))} is {owner}, its mode is {mode:04o}",
        "make it readable (chmod, chown), or name another file",
    )


def _get_user_name(uid: int) -> str:
    """Look up the name of a user; a container may have no entry for its own."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _suggest_path(path: str) -> str:
    """Suggest paths with names like that of the first part of the path that does not exist, or else data files.

    A text that lists several files, or is a word for none of them, is corrected.
    """
    if path.lower() in NO_FILE:
        return f"null for no file, or ./{path} for a file of this name"
    parts = SEPARATORS.split(path)
    if len(parts) > 1 and all(map(os.path.isfile, parts)):
        return f"list several files: '[{','.join(parts)}]' as the value of an option, {' '.join(parts)} as arguments"
    missing = Path(path)
    while not _is_folder(missing.parent) and missing.parent != missing:
        missing = missing.parent
    names = _list_names(missing.parent)
    close = difflib.get_close_matches(missing.name, names, MAX_SUGGESTIONS, MIN_SIMILARITY)
    if close:
        fix = "did you mean " + " or ".join(format_path(str(missing.parent / name)) for name in close) + "?"
    else:
        files = list(filter(is_data_name, names))
        content = _format_names(files) or " no data files"
        fix = f"name a file that exists; {format_path(str(missing.parent))} has{content}"
    if HUB_NAME.fullmatch(path) and not path.endswith(DATA_SUFFIXES):
        fix += f" (write a data set of the hub as hf://{path})"
    return fix


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _list_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, MAX_LISTED))
    except OSError:
        return []


def _format_names(names: list[str]) -> str:
    """Format the first names after a colon; empty without names."""
    if not names:
        return ""
    shown = ", ".join(format_path(name) for name in names[:MAX_SUGGESTIONS])
    return f": {shown}" + (", ..." if len(names) > MAX_SUGGESTIONS else "")
