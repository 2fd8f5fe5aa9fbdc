"""Encodings and compressions."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.row_files import refusal, written

from dpo_lightning.data.readers.text_files import read_text
from dpo_lightning.errors import ExitCode

TEXT = '{"prompt": "하늘은 왜 파란가요?"}\n'


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.json", TEXT)
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
        gzip.compress(TEXT.encode()),
        gzip.compress(TEXT.encode("utf-8-sig")),
    ],
)
def test_utf8_with_and_without_bom_and_gzip(tmp_path: Path, data: bytes) -> None:
    assert read_text(written(tmp_path, data, "misnamed.txt")) == TEXT


def test_gzip_of_several_members(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, gzip.compress(b"a") + gzip.compress(b"b"))) == "ab"


@pytest.mark.parametrize(
    ("data", "what", "fix"),
    [
        (TEXT.encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16", "iconv -f UTF-16LE"),
        (TEXT.encode("utf-16-be"), "UTF-16", "iconv -f UTF-16BE"),
        (TEXT.encode("utf-32"), "UTF-32", "iconv -f UTF-32"),
        (bz2.compress(b"{}"), "bzip2", "bunzip2"),
        (lzma.compress(b"{}"), "xz", "xz -dk"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd", "zstd -d"),
        (zipped(), "zip", "unzip"),
        (tarred(), "tar", "tar xf"),
        (gzip.compress(gzip.compress(b"{}")), "inside gzip", "gunzip"),
        (gzip.compress(b"PAR1PAR1"), "inside gzip", "gunzip"),
        (b"ARROW1\0\0", "Arrow", "parquet"),
        (gzip.compress(TEXT.encode())[:-12], "ends early", "again"),
        (gzip.compress(TEXT.encode())[:-8] + b"\0" * 8, "damaged", "again"),
        (b"\x1f\x8b\x07" + bytes(20), "damaged", "again"),
    ],
)
def test_what_is_no_utf8_text(tmp_path: Path, data: bytes, what: str, fix: str) -> None:
    path = written(tmp_path, data)
    refusal(lambda: read_text(path), ExitCode.DATA, what, fix, f"{path}:1")


def test_a_bomb_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(bytes(80 << 20), compresslevel=1), "rows.jsonl.gz")
    refusal(lambda: read_text(path), ExitCode.DATA, "100 times its size")


def test_every_line_that_is_not_utf8_with_its_byte_offset(tmp_path: Path) -> None:
    path = written(tmp_path, "가\n".encode() + b"ok\nbad \xff\n\xc3")
    message = refusal(lambda: read_text(path), ExitCode.DATA, f"not UTF-8: byte 11 at {path}:3", f"byte 13 at {path}:4")
    assert "\\xff" in message


def test_korean_excel_is_recognised(tmp_path: Path) -> None:
    path = written(tmp_path, "질문,좋은 답,나쁜 답\n".encode("cp949"), "rows.csv")
    fix = f"iconv -f CP949 -t UTF-8 {path} > {tmp_path / 'rows.utf8.csv'}"
    refusal(lambda: read_text(path), ExitCode.DATA, "byte 0", f"{path}:1", "질문", fix)


def test_korean_excel_inside_gzip(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress("질문,답\n".encode("cp949")), "rows.csv.gz")
    refusal(lambda: read_text(path), ExitCode.DATA, f"<(zcat {path})", "rows.utf8.csv")


def test_a_thousand_bad_lines_are_enough(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xff\n" * 1500)
    refusal(lambda: read_text(path), ExitCode.DATA, "stopped after 1,000 bad rows")
