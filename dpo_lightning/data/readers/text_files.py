"""Reads files, decompressed and decoded; errors for other formats give the command that converts them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, NamedTuple

from dpo_lightning.data.readers.archives import (
    SUFFIXES,
    check_unpacked_size,
    decompress,
    file_error,
    find_compression,
    get_size,
    is_workbook,
    open_archive,
    read_member,
)
from dpo_lightning.data.readers.encodings import decode_text
from dpo_lightning.data.readers.paths import format_path, open_file
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_window import TextWindow, decode_chunks, is_plain_utf8

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

HEAD = TAR[0] + len(TAR[1])
"""Bytes by which all formats are recognized."""

MAX_DECODED = 512 << 20
"""Bytes of a file in another encoding than UTF-8, which is decoded as a whole."""


class Content(NamedTuple):
    """The content of a file.

    Attributes:
        file: the file, decompressed where it is gzip, bzip2, xz or zip.
        source: its name.
        workbook: whether it is an Excel workbook, whose data is not decompressed.
    """

    file: IO[bytes]
    source: Source
    workbook: bool = False

    def read_head(self) -> bytes:
        """The first `HEAD` bytes."""
        self.file.seek(0)
        return self.file.read(HEAD)

    def read_data(self) -> bytes:
        """All bytes."""
        self.file.seek(0)
        return self.file.read()


@contextmanager
def open_content(path: str) -> Iterator[Content]:
    """Open a file, and decompress it; it is closed with the context.

    Raises:
        UserError: 64, 66 or 74 as in `open_file`; 65 for a file that is damaged or exceeds the limit of its
            decompressed size, and for an archive with several data files.
    """
    name = format_path(path)
    plain = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
    with ExitStack() as stack:
        content = Content(stack.enter_context(open_file(path)), Source(name, plain))
        kind = find_compression(content.read_head())
        if kind == "zip":
            size = get_size(content.file)
            archive = stack.enter_context(open_archive(content.file, name))
            if is_workbook(archive, name):
                check_unpacked_size(archive, size, name)
                yield Content(content.file, Source(name), workbook=True)
                return
            content = Content(*read_member(archive, size, path, name))
        elif kind:
            source = Source(name, plain, f"{PRINTERS[kind]} {shlex.quote(name)}")
            content = Content(decompress(content.file, kind, name), source)
        stack.enter_context(content.file)
        inner = find_compression(content.read_head()) if kind else ""
        if inner:
            raise file_error(
                content.source.name,
                f"expected text, found {inner} inside {kind}",
                _format_decompression(kind, inner, content.source),
            )
        yield content


def open_text(content: Content) -> TextWindow:
    """Open the text of a file: UTF-8 is decoded in parts, another encoding, which has to be found out, as a whole.

    Raises:
        UserError: 65 for another format or encoding.
    """
    head, name = content.read_head(), content.source.name
    refuse_other_formats(head, content.source)
    if head and not head.strip(b"\0"):
        raise file_error(name, "expected text, found NUL bytes", "write, copy or download the file again")
    if is_plain_utf8(content.file):
        return TextWindow(decode_chunks(content.file, name))
    content.file.seek(0)
    data = content.file.read(MAX_DECODED + 1)
    if len(data) > MAX_DECODED:
        what = f"not UTF-8, and too large to find its encoding (more than {MAX_DECODED >> 20} MiB)"
        raise file_error(name, what, "write the file in UTF-8")
    return TextWindow([decode_text(data, content.source)])


def read_text(path: str) -> str:
    """Read a text file, decompressed and decoded.

    Raises:
        UserError: as in `open_content` and `open_text`.
    """
    with open_content(path) as content:
        return open_text(content).read_all()


def refuse_other_formats(head: bytes, source: Source) -> None:
    """Refuse other compressed files and archives by their first `HEAD` bytes.

    Raises:
        UserError: 65, with the command that decompresses the file.
    """
    quoted = shlex.quote(source.name)
    for magic, (what, fix) in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise file_error(source.name, f"expected UTF-8 text, found {what}", fix.format(quoted))
    if head.startswith(TAR[1], TAR[0]):
        fix = f"tar xf {quoted}, and name the files that it contains"
        raise file_error(source.name, "expected UTF-8 text, found a tar archive", fix)


def _format_decompression(kind: str, inner: str, source: Source) -> str:
    """The command that writes a file that is compressed twice with one compression less."""
    suffix = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zip": ".zip"}[inner]
    plain = source.plain.removesuffix(suffix)
    return f"{source.command} > {shlex.quote(plain + '.inner' + suffix)}, and name that file"
