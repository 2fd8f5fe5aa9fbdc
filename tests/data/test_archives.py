"""Compressed files and zip archives: read in memory, with a limit, and nothing is written."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support.row_files import OTHER, PAIR, refusal, written

from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode, UserError

LINES = f"{json.dumps(PAIR)}\n{json.dumps(OTHER)}\n".encode()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def read(path: str) -> list[tuple[str, object]]:
    return [(str(row.origin), row.values) for row in read_rows(path)]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["rows.jsonl.xz", "rows"])
def test_compressed_files(tmp_path: Path, pack, name: str) -> None:  # type: ignore[no-untyped-def]
    path = written(tmp_path, pack(LINES), name)
    assert read(path) == [(f"{path}:1", PAIR), (f"{path}:2", OTHER)]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_of_several_members(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    first, second = LINES.splitlines(keepends=True)
    assert len(read(written(tmp_path, pack(first) + pack(second)))) == 2


@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (None, "zip")]
)
def test_bombs_and_damage(tmp_path: Path, pack, name: str) -> None:  # type: ignore[no-untyped-def]
    pack = pack or (lambda data: zipped({"a.jsonl": data}))
    bomb = written(tmp_path, pack(bytes(80 << 20)))
    refusal(lambda: read(bomb), ExitCode.DATA, "100 times its size", name, f"{bomb}:1")
    noise = random.Random(0).randbytes(5000).hex().encode()
    whole = pack(noise)
    cut = written(tmp_path, whole[: len(whole) // 2])
    refusal(lambda: read(cut), ExitCode.DATA, name, "again", f"{cut}:1")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    changed = written(tmp_path, bytes(flipped))
    refusal(lambda: read(changed), ExitCode.DATA, name, "damaged", f"{changed}")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_the_only_data_file_of_a_zip(tmp_path: Path, compression: int) -> None:
    members = {"README.md": b"text", "a/": b"", "__MACOSX/a/._rows.jsonl": b"x", "a/rows.jsonl": LINES, "LICENSE": b"x"}
    path = written(tmp_path, zipped(members, compression), "rows.zip")
    assert read(path) == [(f"{path}/a/rows.jsonl:1", PAIR), (f"{path}/a/rows.jsonl:2", OTHER)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.zip"]


@pytest.mark.parametrize("name", ["../../evil.jsonl", "/etc/evil.jsonl", "a\x1b[2J.jsonl", "가.jsonl", "C:\\x.jsonl"])
def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    path = written(folder, zipped({name: LINES}), "rows.zip")
    rows = read(path)
    assert [values for _, values in rows] == [PAIR, OTHER]
    assert "\x1b" not in rows[0][0]
    assert [entry.name for entry in tmp_path.rglob("*") if entry.is_file()] == ["rows.zip"]


def test_a_file_without_a_known_suffix_and_a_table(tmp_path: Path) -> None:
    assert len(read(written(tmp_path, zipped({"rows": LINES}), "rows.zip"))) == 2
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([PAIR, OTHER]), buffer)
    path = written(tmp_path, zipped({"rows.parquet": buffer.getvalue()}), "rows.zip")
    assert read(path) == [(f"{path}/rows.parquet:1", PAIR), (f"{path}/rows.parquet:2", OTHER)]


def test_several_data_files_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, zipped({"train.jsonl": LINES, "test.csv": b"a,b\n1,2"}), "a b.zip")
    message = refusal(lambda: read(path), ExitCode.DATA, "2 data files: train.jsonl, test.csv", f"{path}:1")
    command = message.rpartition("fix: ")[2].partition(", and name")[0]
    assert "unzip -d" in command
    if shutil.which("unzip"):
        subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
        assert len(read(str(tmp_path / "a b.unzipped" / "train.jsonl"))) == 2


@pytest.mark.parametrize("members", [{}, {"a/": b""}, {".hidden.jsonl": LINES}])
def test_no_data_file(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = written(tmp_path, zipped(members), "rows.zip")
    refusal(lambda: read(path), ExitCode.DATA, "no file", f"{path}:1")


def test_a_file_with_a_password(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.jsonl": LINES}))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.index(signature) + place
        data[start] |= 1
    path = written(tmp_path, bytes(data), "rows.zip")
    refusal(lambda: read(path), ExitCode.DATA, "encrypted", f"unzip {path}", f"{path}/a.jsonl:1")


def test_a_size_that_is_not_true(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.jsonl": bytes(80 << 20)}))
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(signature) + place
        data[start : start + 4] = struct.pack("<I", 100)
    path = written(tmp_path, bytes(data), "rows.zip")
    refusal(lambda: read(path), ExitCode.DATA, f"{path}")


def test_other_workbooks(tmp_path: Path) -> None:
    for member in ("content.xml", "xl/workbook.bin"):
        path = written(tmp_path, zipped({member: b"x", "mimetype": b"y"}), "rows.ods")
        refusal(lambda path=path: read(path), ExitCode.DATA, "a workbook", "CSV UTF-8")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_archives_raise_nothing_but_errors_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    pack = data.draw(st.sampled_from([gzip.compress, bz2.compress, lzma.compress, lambda x: zipped({"a.jsonl": x})]))
    content = bytearray(pack(LINES))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(content[: data.draw(st.integers(1, len(content)))]), "fuzz")
    try:
        read(path)
    except UserError as error:
        str(error).encode()
