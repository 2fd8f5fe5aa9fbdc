"""Encodings and compressions."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from support.row_files import refusal, written

from dpo_lightning.data.readers.text_files import read_text
from dpo_lightning.errors import ExitCode

compress = partial(gzip.compress, mtime=0)  # without a time, so that every worker process has the same names of tests
TEXT = '{"prompt": "하늘은 왜 파란가요?"}\n'


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.json"), TEXT)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.json"), io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        compress(TEXT.encode()),
        compress(TEXT.encode("utf-8-sig")),
        bz2.compress(TEXT.encode()),
        lzma.compress(TEXT.encode("utf-8-sig")),
        zipped(),
    ],
)
def test_utf8_with_and_without_bom_and_gzip(tmp_path: Path, data: bytes) -> None:
    assert read_text(written(tmp_path, data, "misnamed.txt")) == TEXT


def test_gzip_of_several_members(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, compress(b"a") + compress(b"b"))) == "ab"


@pytest.mark.parametrize(
    ("data", "what", "fix"),
    [
        (TEXT.encode("utf-32"), "UTF-32", "iconv -f UTF-32"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd", "zstd -d"),
        (tarred(), "tar", "tar xf"),
        (compress(tarred()), "tar", "tar xf"),
        (b"Rar!\x1a\x07\x01\x00", "rar", "unrar x"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Office", "CSV UTF-8"),
        (compress(compress(b"{}")), "gzip inside gzip", "zcat"),
        (bz2.compress(zipped()), "zip inside bzip2", "bzcat"),
        (compress(TEXT.encode())[:-12], "ends early", "again"),
        (compress(TEXT.encode())[:-8] + b"\0" * 8, "damaged", "again"),
        (b"\x1f\x8b\x07" + bytes(20), "damaged", "again"),
    ],
)
def test_what_is_no_utf8_text(tmp_path: Path, data: bytes, what: str, fix: str) -> None:
    path = written(tmp_path, data)
    refusal(lambda: read_text(path), ExitCode.DATA, what, fix, f"{path}:1")


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path, compress(bytes(80 << 20), compresslevel=1), "rows.jsonl.gz")
    refusal(lambda: read_text(path), ExitCode.DATA, "100 times its size")


def test_every_line_that_is_not_utf8_with_its_byte_offset(tmp_path: Path) -> None:
    path = written(tmp_path, "가\n".encode() + b"ok\nbad \xff\n\xc3")
    message = refusal(lambda: read_text(path), ExitCode.DATA, f"not UTF-8: byte 11 at {path}:3", f"byte 13 at {path}:4")
    assert "\\xff" in message


def test_korean_excel_is_recognised(tmp_path: Path) -> None:
    path = written(tmp_path, "질문,좋은 답,나쁜 답\n".encode("cp949"), "rows.csv")
    assert read_text(path) == "질문,좋은 답,나쁜 답\n"


def test_korean_excel_inside_gzip(tmp_path: Path) -> None:
    path = written(tmp_path, compress("질문,답이 좋다\n".encode("cp949")), "rows.csv.gz")
    assert read_text(path) == "질문,답이 좋다\n"


def test_a_thousand_bad_lines_are_enough(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xff\n" * 1500)
    refusal(lambda: read_text(path), ExitCode.DATA, "stopped after 1,000 bad rows")
