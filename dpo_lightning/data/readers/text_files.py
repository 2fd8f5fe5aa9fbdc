"""Reads text files as UTF-8, gzip included; errors for other formats give the command that converts them."""

from __future__ import annotations

import gzip
import io
import shlex
import zlib

from dpo_lightning.data.readers.bad_rows import MAX_BAD_ROWS
from dpo_lightning.data.readers.paths import format_path, read_bytes
from dpo_lightning.errors import ExitCode, Problem, UserError

# The first bytes of each format.
GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
UTF8_BOM = "\ufeff"
WIDE_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of other encodings; UTF-32 is first, as its mark begins with that of UTF-16."""

OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": ("a file compressed by zstd", "zstd -d {}"),
    b"\xfd7zXZ\x00": ("a file compressed by xz", "xz -dk {}"),
    b"\x04\x22\x4d\x18": ("a file compressed by lz4", "lz4 -dk {}"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x {}"),
    b"PK\x03\x04": ("a zip archive (or an Excel workbook)", "unzip {}, or save the workbook as 'CSV UTF-8'"),
    b"ARROW1": ("an Arrow file", "write it as parquet or jsonl"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "write it as parquet or jsonl"),
}
"""First bytes of other formats, with their names and remedies; `{}` is the file."""

BZIP2 = (b"BZh", b"1AY&SY")
"""First bytes of a file, and those from the fifth on: text may begin with `BZh`."""

TAR = (257, b"ustar")
"""The byte at which a tar archive is marked, and the mark."""

CHUNK = 1 << 20
"""Bytes that are decompressed at once."""

BOMB_FLOOR = 64 << 20
BOMB_RATIO = 100
"""A gzip file may decompress to `BOMB_FLOOR` bytes or `BOMB_RATIO` times its size, whichever is more.

Text compresses some 3 to 20 times; a file that exceeds the limit was made to exhaust the memory.
"""

KOREAN, WESTERN = "CP949", "CP1252"
"""The encodings in which Excel on Windows saves CSV in Korean and in Western European languages."""

BEFORE, AFTER = 20, 40
"""Bytes around an invalid one that an error quotes."""


def read_text(path: str) -> str:
    """Read a file as UTF-8, decompressed if it is gzip, without a byte order mark.

    Raises:
        UserError: 64, 66 or 74 as in `read_bytes`; 65 for another format or encoding, and for a gzip file that is
            damaged or exceeds the limit.
    """
    name = format_path(path)
    data = read_bytes(path)
    if data.startswith(GZIP):
        data = decompress(data, name)
    refuse_other_formats(data, name)
    try:
        return data.decode().removeprefix(UTF8_BOM)
    except UnicodeDecodeError:
        raise _encoding_error(data, name) from None


def decompress(data: bytes, name: str) -> bytes:
    """Decompress gzip data.

    Args:
        data: the whole file.
        name: the file as messages print it.

    Raises:
        UserError: 65 if the data is truncated or damaged, or exceeds `BOMB_FLOOR` and `BOMB_RATIO`.
    """
    limit = max(BOMB_FLOOR, BOMB_RATIO * len(data))
    content = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while chunk := file.read(CHUNK):
                content.write(chunk)
                if content.tell() > limit:
                    raise _file_error(
                        name,
                        f"the gzip file decompresses to more than {BOMB_RATIO} times its size ({len(data):,} bytes)",
                        "if you trust the file, decompress it, and name the decompressed file",
                    )
    except EOFError:
        raise _file_error(name, "the gzip file ends early", "copy or download the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _file_error(name, f"the gzip file is damaged ({error})", "copy or download the file again") from None
    return content.getvalue()


def refuse_other_formats(data: bytes, name: str) -> None:
    """Refuse compressed files, archives and other encodings by their first bytes.

    Raises:
        UserError: 65, with the command that converts the file.
    """
    quoted = shlex.quote(name)
    for magic, encoding in WIDE_BOMS.items():
        if data.startswith(magic):
            raise _file_error(
                name, f"expected UTF-8 text, found {encoding} text", _format_iconv_command(encoding, name)
            )
    for magic, (what, fix) in OTHER_FORMATS.items():
        if data.startswith(magic):
            raise _file_error(name, f"expected UTF-8 text, found {what}", fix.format(quoted))
    if data.startswith(BZIP2[0]) and data[4:10] == BZIP2[1]:
        raise _file_error(name, "expected UTF-8 text, found a file compressed by bzip2", f"bunzip2 -k {quoted}")
    if data[TAR[0] :].startswith(TAR[1]):
        raise _file_error(
            name, "expected UTF-8 text, found a tar archive", f"tar xf {quoted}, and name the files that it contains"
        )
    if data.startswith((PARQUET, GZIP)):
        raise _file_error(
            name,
            "expected text, found parquet or gzip inside gzip",
            f"gunzip -k {quoted}, and name the decompressed file",
        )
    # UTF-16 without a byte order mark: in ASCII text every other byte is NUL.
    if len(data) > 3 and data[0:4:2] != data[1:4:2] and b"\0\0" in (data[0:4:2], data[1:4:2]):
        raise _file_error(
            name,
            "expected UTF-8 text, found UTF-16 text",
            _format_iconv_command("UTF-16BE" if data[0] == 0 else "UTF-16LE", name),
        )


def _encoding_error(data: bytes, name: str) -> UserError:
    """Return an error with each line that is not UTF-8, and the command that converts the file.

    Data that is valid as `KOREAN` is quoted in that encoding; single bytes are valid in `WESTERN` almost always, so
    that one is only suggested.
    """
    korean = _is_valid(data, KOREAN)
    problems: list[Problem] = []
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            around = line[max(0, error.start - BEFORE) : error.start + AFTER]
            text = line.decode(KOREAN, "replace") if korean else around.decode("utf-8", "backslashreplace")
            problems.append(Problem(f"not UTF-8: byte {start + error.start}", where=f"{name}:{number}", text=text))
            if len(problems) == MAX_BAD_ROWS:
                problems.insert(0, Problem(f"stopped after {MAX_BAD_ROWS:,} bad rows", where=f"{name}:{number}"))
                break
        start += len(line) + 1  # and the line feed
    return UserError(
        ExitCode.DATA,
        problems,
        fix=f"the file is valid {KOREAN} (Korean Excel): {_format_iconv_command(KOREAN, name)}"
        if korean
        else f"save the file as UTF-8 (if it was saved on Windows: {_format_iconv_command(WESTERN, name)})",
    )


def _is_valid(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _format_iconv_command(encoding: str, name: str) -> str:
    """Format the command that converts a file to UTF-8 beside it: `rows.csv` or `rows.csv.gz` to `rows.utf8.csv`."""
    plain = name.removesuffix(".gz")
    source = shlex.quote(name) if plain == name else f"<(zcat {shlex.quote(name)})"
    stem, dot, suffix = plain.rpartition(".")
    target = f"{stem}.utf8.{suffix}" if dot and "/" not in suffix else f"{plain}.utf8"
    return f"iconv -f {encoding} -t UTF-8 {source} > {shlex.quote(target)}"


def _file_error(name: str, what: str, fix: str) -> UserError:
    return UserError(ExitCode.DATA, Problem(what, where=f"{name}:1"), fix=fix)
