"""Decompresses gzip, bzip2 and xz files and the only data file of a zip archive with a limit of the size."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shlex
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import IO, Any, cast

from dpo_lightning.data.readers.paths import format_path, is_data_name
from dpo_lightning.data.readers.source import Source
from dpo_lightning.errors import ExitCode, Problem, UserError

# The first bytes of each format.
GZIP, BZIP2, XZ, ZIP = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"PK\x03\x04"
EMPTY_ZIP = b"PK\x05\x06"
BZIP2_BLOCK = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
"""What follows the first four bytes of bzip2, a block or the end: text may begin with `BZh`."""

SUFFIXES = (".gz", ".bz2", ".xz")
OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}
CHUNK = 1 << 20
"""Bytes that are decompressed at once."""

MOST_IN_MEMORY = 4 << 20
"""Decompressed bytes from which a temporary file is used. All data is decompressed before its first row is used, since
damage or another encoding may only appear at the end; decompressing twice would cost more than writing a file."""

BOMB_FLOOR = 64 << 20
BOMB_RATIO = 100
"""A file may decompress to `BOMB_FLOOR` bytes or `BOMB_RATIO` times its size, whichever is more.

Text compresses some 3 to 20 times; a file that exceeds the limit was made to exhaust the memory.
"""

ENCRYPTED = 1
"""The bit of a member's flags that marks it as encrypted."""

WORKBOOK = "xl/workbook.xml"
"""The member of a zip archive that makes it an Excel workbook."""

OTHER_WORKBOOKS = ("xl/workbook.bin", "content.xml")
"""The members that make it a binary Excel workbook or an OpenDocument one, which are not read."""

MAX_NAMED = 3
AGAIN = "copy or download the file again"
DAMAGES = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,
)
"""What the decompressors raise for damaged data: bzip2 an OSError, zip a RuntimeError for a method it does not know."""


def find_compression(data: bytes) -> str:
    """The name of the compression by the first bytes, or "" for data that is not compressed or an archive."""
    if data.startswith(GZIP):
        return "gzip"
    if data.startswith(BZIP2) and data[4:10] in BZIP2_BLOCK:
        return "bzip2"
    if data.startswith(XZ):
        return "xz"
    return "zip" if data.startswith((ZIP, EMPTY_ZIP)) else ""


def decompress(file: IO[bytes], kind: str, name: str) -> IO[bytes]:
    """Decompress a file into memory, or into a temporary file without a name where it is large.

    Args:
        file: the compressed file.
        kind: `gzip`, `bzip2` or `xz`.
        name: the file as messages print it.

    Raises:
        UserError: 65 if the data is truncated or damaged, or exceeds `BOMB_FLOOR` and `BOMB_RATIO`.
    """
    size = get_size(file)

    def open_() -> IO[bytes]:
        file.seek(0)
        return cast("IO[bytes]", OPENERS[kind](file))

    return _store(open_, size, kind, name, f"the {kind} file", name)


def get_size(file: IO[bytes]) -> int:
    """The size of a file in bytes; the next read begins at its first byte."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def open_archive(file: IO[bytes], name: str) -> zipfile.ZipFile:
    """Open a zip archive, or an Excel workbook, which is one.

    Raises:
        UserError: 65 if it is damaged.
    """
    try:
        return zipfile.ZipFile(file)
    except (*DAMAGES, EOFError) as error:
        raise file_error(name, f"the zip archive is truncated or damaged ({error})", AGAIN) from None


def is_workbook(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether an archive is an Excel workbook.

    Raises:
        UserError: 65 for a workbook of another format.
    """
    members = set(archive.namelist())
    if not members.isdisjoint(OTHER_WORKBOOKS) and WORKBOOK not in members:
        raise file_error(name, "expected text, found a workbook", "save it as 'CSV UTF-8' or as .xlsx")
    return WORKBOOK in members


def check_unpacked_size(archive: zipfile.ZipFile, size: int, name: str) -> None:
    """Check the sum of the sizes that an archive of `size` bytes declares; no member is read beyond its own.

    Raises:
        UserError: 65 if it exceeds `BOMB_FLOOR` and `BOMB_RATIO`.
    """
    if sum(member.file_size for member in archive.infolist()) > max(BOMB_FLOOR, BOMB_RATIO * size):
        raise _bomb_error(size, "zip", name)


def read_member(archive: zipfile.ZipFile, size: int, path: str, name: str) -> tuple[IO[bytes], Source]:
    """Read the only data file of a zip archive; the names of its files are never used as paths.

    Args:
        archive: the archive.
        size: its bytes, for the limit.
        path: its path.
        name: its path as messages print it.

    Raises:
        UserError: 65 if there is none or several, or if it is encrypted, damaged or larger than the limit.
    """
    member = _choose_member(archive, name)
    command = f"unzip -p {shlex.quote(name)} {shlex.quote(format_path(member.filename))}"
    beside = str(PurePosixPath(path).with_name(PurePosixPath(member.filename).name or "rows"))
    source = Source(f"{name}/{format_path(member.filename)}", format_path(beside), command)
    if member.flag_bits & ENCRYPTED:
        raise file_error(
            source.name, "the file in the zip archive is encrypted", f"unzip {shlex.quote(name)}, and name its file"
        )
    return _store(lambda: archive.open(member), size, "zip", name, "the zip archive", source.name), source


def file_error(name: str, what: str, fix: str) -> UserError:
    """The error about a file as a whole."""
    return UserError(ExitCode.DATA, Problem(what, where=f"{name}:1"), fix=fix)


def _choose_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The member with rows: the only one with the suffix of a data file, or the only file at all."""
    files = [
        member
        for member in archive.infolist()
        if not member.is_dir()
        and not any(
            part.startswith((".", "__MACOSX")) and part != ".." and part != "."
            for part in PurePosixPath(member.filename).parts
        )
    ]
    found = [member for member in files if is_data_name(PurePosixPath(member.filename).name)] or files
    if len(found) == 1:
        return found[0]
    folder = shlex.quote(name.removesuffix(".zip") + ".unzipped")
    command = f"unzip -d {folder} {shlex.quote(name)}"
    if not found:
        raise file_error(name, "the zip archive has no file", "name an archive with a data file")
    shown = ", ".join(format_path(member.filename) for member in found[:MAX_NAMED])
    rest = f", and {len(found) - MAX_NAMED:,} more" if len(found) > MAX_NAMED else ""
    raise file_error(
        name, f"the zip archive has {len(found):,} data files: {shown}{rest}", f"{command}, and name one of them"
    )


def _store(open_: Callable[[], IO[bytes]], size: int, kind: str, name: str, whole: str, where: str) -> IO[bytes]:
    """Decompress what `open_` opens, up to the limit for `size` compressed bytes.

    Args:
        open_: opens the compressed data at its first byte.
        size: the bytes of the compressed file, for the limit.
        kind: the compression, and
        name: the file, for the error about the limit.
        whole: what is damaged, and
        where: its name, for the error about damaged data.
    """
    for in_memory in (False, True):
        stored: IO[bytes] = io.BytesIO()
        with ExitStack() as stack:
            stack.callback(lambda: stored.close())  # noqa: B023, PLW0108 - whichever file it is by then
            try:
                with open_() as file:
                    for chunk in _read_limited(file, size, kind, name):
                        if not in_memory and isinstance(stored, io.BytesIO) and stored.tell() > MOST_IN_MEMORY:
                            stored = _move_to_disk(stored)
                        _write(stored, chunk)
            except _NoSpaceError:
                continue  # the memory may suffice
            except EOFError:
                raise file_error(where, f"{whole} ends early", AGAIN) from None
            except DAMAGES as error:
                raise file_error(where, f"{whole} is damaged ({error})", AGAIN) from None
            stack.pop_all()
        break
    return stored


def _move_to_disk(stored: IO[bytes]) -> IO[bytes]:
    """Copy decompressed data into a temporary file, which has no name and is deleted when it is closed."""
    try:
        file = cast("IO[bytes]", tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - its user closes it
    except OSError:
        raise _NoSpaceError from None
    try:
        stored.seek(0)
        _write(file, stored.read())
    except _NoSpaceError:
        file.close()
        raise
    return file


def _write(file: IO[bytes], data: bytes) -> None:
    try:
        written = file.write(data)
    except OSError:
        raise _NoSpaceError from None
    if written < len(data):  # an unbuffered file writes what there is space for
        raise _NoSpaceError


class _NoSpaceError(Exception):
    """A temporary file cannot be created or written."""


def _read_limited(file: IO[bytes], size: int, kind: str, name: str) -> Iterator[bytes]:
    """Read decompressed data up to the limit for `size` compressed bytes."""
    limit, read = max(BOMB_FLOOR, BOMB_RATIO * size), 0
    while chunk := file.read(CHUNK):
        read += len(chunk)
        if read > limit:
            raise _bomb_error(size, kind, name)
        yield chunk


def _bomb_error(size: int, kind: str, name: str) -> UserError:
    return file_error(
        name,
        f"the {kind} file decompresses to more than {BOMB_RATIO} times its size ({size:,} bytes)",
        "if you trust the file, decompress it, and name the decompressed file",
    )
