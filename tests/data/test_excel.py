"""Excel workbooks; without `openpyxl` they are refused."""

from __future__ import annotations

import datetime
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, refusal, written

from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode

openpyxl = pytest.importorskip("openpyxl", reason="needs openpyxl")
DAY = datetime.datetime(2024, 2, 29)


def workbook(folder: Path, sheets: dict[str, list[list[Any]]], name: str = "rows.xlsx") -> str:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    path = str(folder / name)
    book.save(path)
    return path


def rows_of(pairs: list[dict[str, str]]) -> list[list[Any]]:
    return [list(pairs[0]), *(list(pair.values()) for pair in pairs)]


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.json"])
def test_the_only_sheet_that_is_not_empty(tmp_path: Path, name: str) -> None:
    path = workbook(tmp_path, {"Empty": [], "Rows": [[], *rows_of([PAIR, OTHER])[:2], [], rows_of([PAIR, OTHER])[2]]})
    renamed = written(tmp_path, Path(path).read_bytes(), name)
    rows = list(read_rows(renamed))
    assert [(str(row.origin), row.values) for row in rows] == [(f"{renamed}:3", PAIR), (f"{renamed}:5", OTHER)]


def test_the_types_of_cells(tmp_path: Path) -> None:
    values = [1, 2.5, True, DAY, DAY.replace(hour=9), datetime.time(9, 30), None, " 서울 ", "=1+1", "x"]
    path = workbook(tmp_path, {"A": [[f" c{n} " for n in range(10)], [*values[:8], "text", "x"]]})
    (row,) = read_rows(path)
    assert list(row.values) == [f"c{n}" for n in range(10)]
    assert list(row.values.values()) == [
        1, 2.5, True, "2024-02-29", "2024-02-29T09:00:00", "09:30:00", "", " 서울 ", "text", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([["a", "b"], [1, 2], ["x", "=A2"], ["y", "z"]], ["the formula in 'b' has no stored value", ":3"]),
        ([["a", "b"], [1, "=A2"], ["x", "=A2"]], ["no stored value", ":2", ":3"]),
        ([["a", "b"], [1, "#N/A"]], ["the formula in 'b' has an error as its value", "#N/A", ":2"]),
        ([["a", None, "b"], [1, 2, 3]], ["empty or a repeated name", ":1"]),
        ([["a", "a"], [1, 2]], ["empty or a repeated name", ":1"]),
        ([["a", "b"], [1, 2, 3]], ["3 cells, but the header has 2", ":2"]),
        ([["a", "b"]], ["no rows"]),
        ([], ["no rows"]),
    ],
)
def test_what_is_not_rows(tmp_path: Path, rows: list[list[Any]], parts: list[str]) -> None:
    path = workbook(tmp_path, {"A": rows})
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, path, *parts)


def test_several_sheets_are_named(tmp_path: Path) -> None:
    path = workbook(tmp_path, {"Train": rows_of([PAIR]), "Test\u202e": rows_of([OTHER]), "Empty": []})
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "2 sheets: 'Train', 'Test\\u202e'", "CSV UTF-8")


def test_damaged_workbooks(tmp_path: Path) -> None:
    whole = Path(workbook(tmp_path, {"A": rows_of([PAIR])})).read_bytes()
    cut = written(tmp_path, whole[:-200], "cut.xlsx")
    refusal(lambda: list(read_rows(cut)), ExitCode.DATA, "damaged", f"{cut}:1")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x>")
    odd = written(tmp_path, buffer.getvalue(), "odd.xlsx")
    refusal(lambda: list(read_rows(odd)), ExitCode.DATA, "the workbook is damaged", f"{odd}:1")


def test_a_bomb(tmp_path: Path) -> None:
    path = workbook(tmp_path, {"A": rows_of([PAIR])})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/media/x.xml", bytes(80 << 20))
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "100 times its size")


def test_without_openpyxl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path, {"A": rows_of([PAIR])})
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "openpyxl", "python -m pip install openpyxl", f"{path}:1")
