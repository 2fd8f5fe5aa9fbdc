"""Reads files, decompressed and decoded; errors for other formats give the command that converts them."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from dpo_lightning.data.readers.archives import (
    SUFFIXES,
    check_unpacked_size,
    decompress,
    file_error,
    find_compression,
    is_workbook,
    open_archive,
    read_member,
)
from dpo_lightning.data.readers.encodings import decode_text
from dpo_lightning.data.readers.paths import format_path, read_bytes
from dpo_lightning.data.readers.source import Source

PRINTERS = {"gzip": "zcat", "bzip2": "bzcat", "xz": "xzcat"}
"""The command that prints a compressed file."""

OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": ("a file compressed by zstd", "zstd -d {}, and name the decompressed file"),
    b"\x04\x22\x4d\x18": ("a file compressed by lz4", "lz4 -dk {}, and name the decompressed file"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x {}, and name the files that it contains"),
    b"Rar!": ("a rar archive", "unrar x {}, and name the files that it contains"),
    b"\xd0\xcf\x11\xe0": ("an old or encrypted Office file", "save the workbook {} as 'CSV UTF-8' or as .xlsx"),
}
"""First bytes of other formats, with their names and remedies; `{}` is the file."""

TAR = (257, b"ustar")
"""The byte at which a tar archive is marked, and the mark."""


class Content(NamedTuple):
    """The content of a file.

    Attributes:
        data: the file, decompressed where it is gzip, bzip2, xz or zip.
        source: its name.
        workbook: whether it is an Excel workbook, whose data is not decompressed.
    """

    data: bytes
    source: Source
    workbook: bool = False


def read_content(path: str) -> Content:
    """Read a file, and decompress it in memory.

    Raises:
        UserError: 64, 66 or 74 as in `read_bytes`; 65 for a file that is damaged or exceeds the limit of its
            decompressed size, and for an archive with several data files.
    """
    name = format_path(path)
    plain = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
    data = read_bytes(path)
    kind = find_compression(data)
    if not kind:
        return Content(data, Source(name, plain))
    if kind == "zip":
        archive = open_archive(data, name)
        if is_workbook(archive, name):
            check_unpacked_size(archive, len(data), name)
            return Content(data, Source(name), workbook=True)
        content, source = read_member(archive, len(data), path, name)
    else:
        content = decompress(data, kind, name)
        source = Source(name, plain, f"{PRINTERS[kind]} {shlex.quote(name)}")
    inner = find_compression(content)
    if inner:
        raise file_error(
            source.name, f"expected text, found {inner} inside {kind}", _format_decompression(kind, inner, source)
        )
    return Content(content, source)


def read_text(path: str) -> str:
    """Read a text file, decompressed and decoded.

    Raises:
        UserError: as in `read_content`; 65 for another format or encoding.
    """
    content = read_content(path)
    refuse_other_formats(content.data, content.source)
    return decode_text(content.data, content.source)


def refuse_other_formats(data: bytes, source: Source) -> None:
    """Refuse other compressed files and archives by their first bytes.

    Raises:
        UserError: 65, with the command that decompresses the file.
    """
    quoted = shlex.quote(source.name)
    for magic, (what, fix) in OTHER_FORMATS.items():
        if data.startswith(magic):
            raise file_error(source.name, f"expected UTF-8 text, found {what}", fix.format(quoted))
    if data[TAR[0] :].startswith(TAR[1]):
        fix = f"tar xf {quoted}, and name the files that it contains"
        raise file_error(source.name, "expected UTF-8 text, found a tar archive", fix)


def _format_decompression(kind: str, inner: str, source: Source) -> str:
    """The command that writes a file that is compressed twice with one compression less."""
    suffix = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zip": ".zip"}[inner]
    plain = source.plain.removesuffix(suffix)
    return f"{source.command} > {shlex.quote(plain + '.inner' + suffix)}, and name that file"
