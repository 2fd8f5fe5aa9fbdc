"""Memory and files that reading takes: neither grows with the size of a file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet
from support.row_files import OTHER, PAIR, jsonl, refusal, written

from dpo_lightning.data.readers import archives
from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode

SMALL, LARGE = 500, 10_000
"""Rows of some 4 kB: 2 MB and 40 MB."""

MOST_MIB = 15

PEAK = """
import sys
from dpo_lightning.data.readers.sources import read_rows
def read(path):
    count = sum(1 for _ in read_rows(path))
    (peak,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return count, peak
(_, before), (count, after) = map(read, sys.argv[1:])
print(count, (after - before) // 1024)
"""
"""Prints the rows of the second file, and by how many MiB reading it raised the peak that reading the first set."""


def make_rows(count: int) -> Iterator[dict[str, str]]:
    draw = random.Random(0)
    for _ in range(count):
        yield {name: draw.randbytes(650).hex() + " é\n" for name in ("prompt", "chosen", "rejected")}


def format_lines(count: int) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows(count))


def format_csv(count: int) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(("prompt", "chosen", "rejected"))
    writer.writerows(row.values() for row in make_rows(count))
    return buffer.getvalue()


def write_zip(path: Path, count: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("rows.jsonl", format_lines(count))


def write_arrow(path: Path, count: int) -> None:
    table = pa.Table.from_pylist(list(make_rows(count)))
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


def write_parquet(path: Path, count: int) -> None:
    parquet.write_table(pa.Table.from_pylist(list(make_rows(count))), str(path), use_dictionary=False)  # one row group


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "lines.jsonl": lambda path, count: path.write_text(format_lines(count), encoding="utf-8"),
    "bom.jsonl": lambda path, count: path.write_text(format_lines(count).replace("\n", "\r\n"), encoding="utf-8-sig"),
    "array.json": lambda path, count: path.write_text(json.dumps(list(make_rows(count)))),
    "indented.json": lambda path, count: path.write_text(json.dumps(list(make_rows(count)), indent=1)),
    "rows.csv": lambda path, count: path.write_text(format_csv(count), encoding="utf-8"),
    "rows.jsonl.gz": lambda path, count: path.write_bytes(gzip.compress(format_lines(count).encode(), 1)),
    "rows.zip": write_zip,
    "rows.arrow": write_arrow,
    "rows.parquet": write_parquet,
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of the memory is read from /proc")
@pytest.mark.parametrize("name", WRITERS)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    paths = [tmp_path / f"{count}.{name}" for count in (SMALL, LARGE)]
    for path, count in zip(paths, (SMALL, LARGE), strict=True):
        WRITERS[name](path, count)
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, grown = map(int, done.stdout.split())
    assert count == LARGE
    assert grown < MOST_MIB


def count_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.zip", "rows.arrow", "rows.parquet"])
def test_files_are_closed(tmp_path: Path, name: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(archives, "MOST_IN_MEMORY", 0)
        monkeypatch.setattr(archives, "CHUNK", 10)
    path = tmp_path / name
    writer = WRITERS.get(name, lambda path, _: jsonl(path.parent, [PAIR] * 3))
    writer(path, 3)
    before = count_open_files()
    assert len(list(read_rows(str(path)))) == 3
    assert count_open_files() == before
    rows = read_rows(str(path))
    next(rows)
    assert count_open_files() > before
    rows.close()
    assert count_open_files() == before


def test_a_large_file_is_decompressed_into_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_IN_MEMORY", 1 << 10)
    monkeypatch.setattr(archives, "CHUNK", 1 << 9)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    created = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: created.append(options) or make(**options))
    packed = gzip.compress((json.dumps(PAIR) + "\n").encode() * 500)
    path = written(tmp_path, packed, "rows.jsonl.gz")
    assert [row.values for row in read_rows(path)] == [PAIR] * 500
    assert len(created) == 1
    cut = written(tmp_path, packed[:-20], "cut.jsonl.gz")
    refusal(lambda: list(read_rows(cut)), ExitCode.DATA, "the gzip file ends early", f"{cut}:1")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cut.jsonl.gz", "rows.jsonl.gz"]


@pytest.mark.parametrize("failing", ["open", "write", "part"])
def test_without_space_for_a_temporary_file(tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_IN_MEMORY", 1 << 10)
    monkeypatch.setattr(archives, "CHUNK", 1 << 9)

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            if failing == "part":
                return 1
            raise OSError(28, "No space left on device")

    def create(**_: object) -> Full:
        if failing == "open":
            raise FileNotFoundError(2, "No usable temporary directory found")
        return Full()

    monkeypatch.setattr(tempfile, "TemporaryFile", create)
    path = written(tmp_path, gzip.compress((json.dumps(PAIR) + "\n").encode() * 500), "rows.jsonl.gz")
    assert [row.values for row in read_rows(path)] == [PAIR] * 500


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_disk_that_fails(tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in (PAIR, OTHER)).encode() * 2000
    path = written(tmp_path, pack(lines), "rows.jsonl")

    class Failing(io.FileIO):
        reads = 0

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            self.reads += 1
            if self.reads > 1:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer[:1000])

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: Failing(str(self)))
    refusal(lambda: list(read_rows(path)), ExitCode.IO, "Input/output error", path)
