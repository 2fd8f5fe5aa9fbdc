"""Bytes of a data file into UTF-8 text, gzip included, or the reason why not."""

from __future__ import annotations

import gzip
import io
import shlex
import zlib

from dpo_lightning.data.readers.bad_rows import MAX_BAD_ROWS
from dpo_lightning.data.readers.paths import display_name, read_bytes
from dpo_lightning.errors import ExitCode, Problem, UserError

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
UTF8_BOM = "\ufeff"
WIDE_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}

OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "zstd -d {}"),
    b"\xfd7zXZ\x00": ("xz-compressed", "xz -dk {}"),
    b"\x04\x22\x4d\x18": ("lz4-compressed", "lz4 -dk {}"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x {}"),
    b"PK\x03\x04": ("a zip archive (or an Excel workbook)", "unzip {}, or save the workbook as 'CSV UTF-8'"),
    b"ARROW1": ("an Arrow file", "write it as parquet or jsonl"),
    b"\xff\xff\xff\xff": ("an Arrow stream", "write it as parquet or jsonl"),
}
BZIP2 = (b"BZh", b"1AY&SY")
TAR = (257, b"ustar")

CHUNK = 1 << 20
BOMB_FLOOR = 64 << 20
BOMB_RATIO = 100
"""A gzip file may not unpack to more than 64 MiB and 100 times its size; text packs some 3 to 20 times."""


def read_text(path: str) -> str:
    """The text of a file, unpacked if it is gzip, without a byte order mark.

    Raises:
        UserError: 64 or 66 for the path, 65 for another compression, a bomb, or bytes that are no UTF-8.
    """
    name = display_name(path)
    data = read_bytes(path)
    if data.startswith(GZIP):
        data = unpack(data, name)
    refuse_other_formats(data, name)
    try:
        return data.decode().removeprefix(UTF8_BOM)
    except UnicodeDecodeError:
        raise _not_utf8(data, name) from None


def unpack(data: bytes, name: str) -> bytes:
    """Unpack gzip, up to the limit.

    Raises:
        UserError: 65 for a file that is cut off, damaged, or unpacks to far more than text would.
    """
    limit = max(BOMB_FLOOR, BOMB_RATIO * len(data))
    unpacked = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while chunk := file.read(CHUNK):
                unpacked.write(chunk)
                if unpacked.tell() > limit:
                    raise _refused(
                        name,
                        f"unpacks to more than {BOMB_RATIO} times its size ({len(data):,} bytes)",
                        "unpack it yourself if you trust it, and name the unpacked file",
                    )
    except EOFError:
        raise _refused(name, "the gzip file ends early", "copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _refused(name, f"the gzip file is damaged ({error})", "copy or download it again") from None
    return unpacked.getvalue()


def refuse_other_formats(data: bytes, name: str) -> None:
    """Refuse what is no text, by its first bytes.

    Raises:
        UserError: 65, with the command that turns it into text.
    """
    quoted = shlex.quote(name)
    for magic, encoding in WIDE_BOMS.items():
        if data.startswith(magic):
            raise _refused(name, f"{encoding} text", _iconv(encoding, name))
    for magic, (what, fix) in OTHER_FORMATS.items():
        if data.startswith(magic):
            raise _refused(name, what, fix.format(quoted))
    if data.startswith(BZIP2[0]) and data[4:10] == BZIP2[1]:
        raise _refused(name, "bzip2-compressed", f"bunzip2 -k {quoted}")
    if data[TAR[0] :].startswith(TAR[1]):
        raise _refused(name, "a tar archive", f"tar xf {quoted}, and name the files in it")
    if data.startswith((PARQUET, GZIP)):
        raise _refused(name, "parquet or gzip inside gzip", f"gunzip -k {quoted}, and name what comes out")
    # ASCII in UTF-16 has a NUL in every other byte, also without a byte order mark.
    if len(data) > 3 and data[0:4:2] != data[1:4:2] and b"\0\0" in (data[0:4:2], data[1:4:2]):
        raise _refused(name, "UTF-16 text", _iconv("UTF-16BE" if data[0] == 0 else "UTF-16LE", name))


def _not_utf8(data: bytes, name: str) -> UserError:
    """Every line with a byte that is no UTF-8; Korean Excel's encoding is recognised."""
    korean = _decodes(data, "cp949")
    problems: list[Problem] = []
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            around = line[max(0, error.start - 20) : error.start + 40]
            text = line.decode("cp949", "replace") if korean else around.decode("utf-8", "backslashreplace")
            problems.append(Problem(f"not UTF-8: byte {start + error.start}", where=f"{name}:{number}", text=text))
            if len(problems) == MAX_BAD_ROWS:
                problems.insert(0, Problem(f"stopped after {MAX_BAD_ROWS:,} bad rows", where=f"{name}:{number}"))
                break
        start += len(line) + 1
    return UserError(
        ExitCode.DATA,
        problems,
        fix=f"it reads as CP949, as Korean Excel writes: {_iconv('CP949', name)}"
        if korean
        else f"save it as UTF-8 (if Windows wrote it: {_iconv('CP1252', name)})",
    )


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _iconv(encoding: str, name: str) -> str:
    plain = name.removesuffix(".gz")
    source = shlex.quote(name) if plain == name else f"<(zcat {shlex.quote(name)})"
    stem, dot, suffix = plain.rpartition(".")
    target = f"{stem}.utf8.{suffix}" if dot and "/" not in suffix else f"{plain}.utf8"
    return f"iconv -f {encoding} -t UTF-8 {source} > {shlex.quote(target)}"


def _refused(name: str, what: str, fix: str) -> UserError:
    return UserError(ExitCode.DATA, Problem(what, where=f"{name}:1"), fix=fix)
