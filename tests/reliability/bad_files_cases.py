"""Files of rows that are damaged, special, huge or of another format."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_rows_cases import ESC, EXPORTED, GOOD, ROW
from support.cases import Case, fit, json_lines, rows

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def parquet(path: Path, columns: dict[str, Any] | None = None) -> None:
    """A parquet file."""
    import pyarrow
    from pyarrow.parquet import write_table

    names = GOOD[0]
    write_table(pyarrow.table(columns or {name: [row[name] for row in GOOD] for name in names}), path)


def cut_parquet(path: Path) -> None:
    """A parquet file that ends early."""
    parquet(path)
    path.write_bytes(path.read_bytes()[:-40])


def broken_parquet(path: Path) -> None:
    """A parquet file with wrong bytes in the middle."""
    parquet(path)
    data = bytearray(path.read_bytes())
    data[20:120] = bytes(100)
    path.write_bytes(bytes(data))


def gz_bomb(path: Path) -> None:
    """Spaces and a row, in a thousandth of their size."""
    with gzip.open(path, "wb", 1) as file:
        for _ in range(20):
            file.write(b" " * (1 << 24))
        file.write(json.dumps(ROW).encode())


def gz_line(path: Path) -> None:
    """One row of 320 MB, in a hundredth of that."""
    with gzip.open(path, "wb", 1) as file:
        file.write(b'{"prompt": "')
        for _ in range(20):
            file.write(b"a" * (1 << 24))


def zip_bomb(path: Path) -> None:
    """A member of 320 MB, in a hundredth of that."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("rows.jsonl", "w", force_zip64=True) as file,
    ):
        for _ in range(20):
            file.write(b"a" * (1 << 24))


def zip_names(*names: str) -> Callable[[Path], None]:
    """An archive with members of these names."""

    def build(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "\n".join(EXPORTED))

    return build


def nested_zip(path: Path) -> None:
    """An archive in an archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as inner:
        inner.writestr("rows.jsonl", "\n".join(EXPORTED))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.zip", data.getvalue())


def workbook_bomb(path: Path) -> None:
    """A workbook whose sheet is 320 MB of spaces."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
        with archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as file:
            for _ in range(20):
                file.write(b" " * (1 << 24))


def sparse(size: int) -> Callable[[Path], None]:
    """A file of holes."""

    def build(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return build


def unreadable(path: Path) -> None:
    """A file without permission."""
    json_lines(path, GOOD)
    path.chmod(0)


CASES = [
    Case("a file that is missing", lambda _: ["check-data", "trian.jsonl"], 66, ("train.jsonl",)),
    Case("a folder without rows", lambda _: ["check-data", "outside"], 66),
    Case("a device", lambda _: ["check-data", "/dev/zero"], 66),
    Case("standard input as a file", lambda _: ["check-data", "/dev/stdin"], 65),
    Case("a file of proc", lambda _: ["check-data", "/proc/self/environ"], 65),
    Case("memory as a file", lambda _: ["check-data", "/proc/self/mem"], 74),
    rows("a pipe", 66, os.mkfifo),
    rows("a link to nothing", 66, lambda path: path.symlink_to("nothing")),
    rows("a link to itself", 66, lambda path: path.symlink_to(path.name)),
    rows("a link to a device", 66, lambda path: path.symlink_to("/dev/zero")),
    rows("a folder under a file's name", 66, Path.mkdir),
    rows("an empty file", 65, ""),
    rows("a file of blank lines", 65, "\n\n \n"),
    rows("a file of NULs", 65, bytes(1000)),
    rows("holes of 6 GB", 65, sparse(6 << 30)),
    rows("holes of 6 GB as a table", 65, sparse(6 << 30), file="rows.parquet"),
    rows("holes of 6 GB as CSV", 65, sparse(6 << 30), file="rows.csv"),
    rows("holes of 6 GB as YAML", 65, sparse(6 << 30), file="rows.yaml"),
    rows("holes of 6 GB as a workbook", 65, sparse(6 << 30), file="rows.xlsx"),
    rows("holes of 6 GB in zip", 65, sparse(6 << 30), file="rows.zip"),
    rows("a bomb in gz", 65, gz_bomb, file="rows.jsonl.gz"),
    rows("a row of 320 MB in gz", 65, gz_line, file="rows.jsonl.gz"),
    rows("a bomb in zip", 65, zip_bomb, file="rows.zip"),
    rows("a zip in a zip", 65, nested_zip, file="rows.zip"),
    rows("an empty zip", 65, zip_names(), file="rows.zip"),
    rows("a zip that leaves its folder", 0, zip_names("../../outside/rows.jsonl"), file="rows.zip"),
    rows("a zip of two files", 65, zip_names("a.jsonl", "b.jsonl"), file="rows.zip"),
    rows("a zip's name with an ESC", 65, zip_names(f"a{ESC}.jsonl", f"b{ESC}.jsonl"), file="rows.zip"),
    rows("a workbook that is a bomb", 65, workbook_bomb, file="rows.xlsx"),
    rows("a gz that ends early", 65, gzip.compress("\n".join(EXPORTED).encode())[:-20], file="rows.jsonl.gz"),
    rows("a gz that is none", 65, b"\x1f\x8b" + bytes(100), file="rows.jsonl.gz"),
    rows("a bz2 that is none", 65, b"BZh9" + bytes(100), file="rows.jsonl.bz2"),
    rows("an xz that is none", 65, b"\xfd7zXZ\0" + bytes(100), file="rows.jsonl.xz"),
    rows("a zstd", 65, b"\x28\xb5\x2f\xfd" + bytes(100), file="rows.jsonl.zst"),
    rows("a 7z", 65, b"7z\xbc\xaf\x27\x1c" + bytes(100), file="rows.jsonl"),
    rows("a pickle", 65, b"\x80\x04\x95" + bytes(100), file="rows.pkl"),
    rows("an array under the name of lines", 0, json.dumps(GOOD)),
    rows("an array and lines", 65, json.dumps(GOOD[:4]) + "\n" + "\n".join(EXPORTED[4:])),
    rows("CSV with semicolons", 0, "prompt;chosen;rejected\na;b;c\nd;e;f\n", file="rows.csv"),
    rows("CSV without a header", 65, "a,b,c\nd,e,f\n", file="rows.csv"),
    rows("CSV with an open quote", 65, 'prompt,chosen,rejected\na,"b,c\nd,e,f\n', file="rows.csv"),
    rows("CSV with a field of 5 MB", 65, f"prompt,chosen,rejected\na,{'b' * 5_000_000},c\n", file="rows.csv"),
    rows("a parquet that ends early", 65, cut_parquet, file="rows.parquet"),
    rows("a parquet of wrong bytes", 65, broken_parquet, file="rows.parquet"),
    rows("a parquet of zeros", 65, b"PAR1" + bytes(100) + b"PAR1", file="rows.parquet"),
    rows("an Arrow file that ends early", 65, b"ARROW1\0\0" + bytes(50), file="rows.arrow"),
    rows("YAML with a python tag", 65, "- prompt: !!python/object/apply:os.system ['touch outside/canary']\n",
         file="rows.yaml"),
    rows("YAML of a billion laughs", 65, LAUGHS, file="rows.yaml"),
    rows("YAML in itself", 65, "&a [*a]", file="rows.yaml"),
    rows("HTML", 65, "<!DOCTYPE html><html><body>404</body></html>"),
    rows("an LFS pointer", 65, "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"),
    rows("rows that Python printed", 65, "{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}\n"),
    rows("a name with an ESC", 65, [{"a": 1}], file=f"rows{ESC}.jsonl"),
    rows("a name with a newline", 65, [{"a": 1}], file="rows\nfix: rm -rf.jsonl"),
    rows("a name that is no UTF-8", 65, lambda p: p.write_text('{"a": 1}'), file="rows\udcff.jsonl"),
    rows("a name like a flag", 65, [{"a": 1}], file="./--rows.jsonl"),
    Case("two files of other columns", lambda p: (json_lines(p / "b.jsonl", [{"text": "x"}] * 4),
         ["check-data", "train.jsonl", "b.jsonl"])[1], 65),
    Case("a URL", lambda _: ["check-data", "http://127.0.0.1:1/x.jsonl"], 64),
    Case("an S3 URL", lambda _: ["check-data", "s3://evil/x.jsonl"], 64),
    Case("a hub's set that leaves the hub", lambda _: ["check-data", "hf://../../etc"], 64),
    Case("a hub's set that leaves it by its name", lambda _: ["check-data", "hf://../etc"], 64),
    Case("a hub's set that is here", lambda _: ["check-data", "hf://./outside"], 64),
    Case("a hub's set with a split that leaves it", lambda _: ["check-data", "hf://a/b:../../x"], 66),
    Case("a hub's set without a network", lambda _: ["check-data", "hf://evil/rows"], 66),
    Case("a prompt in both sets", lambda _: fit("--data.eval=train.jsonl"), 65),
    Case("rows nobody may read", lambda p: (unreadable(p / "x.jsonl"), ["check-data", "x.jsonl"])[1],
         66 if os.geteuid() else 0),
]  # fmt: skip
