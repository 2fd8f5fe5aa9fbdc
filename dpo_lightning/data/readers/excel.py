"""Rows of the only sheet of an Excel workbook, each with its number in the sheet; needs `openpyxl`."""

from __future__ import annotations

import datetime
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.archives import file_error
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.csv_rows import check_header
from dpo_lightning.data.readers.source import Source
from dpo_lightning.errors import ExitCode, Problem, UserError
from dpo_lightning.terminal import quote

SAVE_AS_CSV = "save the sheet as 'CSV UTF-8 (comma delimited)'"
FORMULA, FAILED = "f", "e"
"""The types of a cell with a formula, and of one whose value is an error such as `#N/A`."""


def read_workbook_rows(data: bytes, source: Source, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the only sheet that is not empty; its first row that is not empty is the header.

    Numbers and booleans keep their type, dates become ISO 8601 text, and an empty cell is an empty text, as in CSV.

    Args:
        data: the workbook.
        source: its name.
        bad: receives an error for each row that cannot be read.

    Raises:
        UserError: 65 without `openpyxl`, and for a workbook that is damaged or has rows in several sheets.
    """
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            ExitCode.DATA,
            Problem("reading an Excel workbook needs the package openpyxl", where=f"{source.name}:1"),
            fix=f"python -m pip install openpyxl, or {SAVE_AS_CSV}",
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about charts and validations, which are not read
            values = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            sheets = {sheet.title: _read_cells(sheet) for sheet in values.worksheets}
    # openpyxl raises errors of zipfile, of the XML parser and its own; each of them means a damaged workbook.
    except Exception as error:
        raise file_error(
            source.name, f"the workbook is damaged ({type(error).__name__})", "open it and save it again"
        ) from None
    full = {title: rows for title, rows in sheets.items() if rows}
    if len(full) > 1:
        titles = ", ".join(f"'{quote(title)}'" for title in full)
        raise file_error(source.name, f"the workbook has rows in {len(full)} sheets: {titles}", SAVE_AS_CSV)
    for title, rows in full.items():
        yield from _parse_rows(rows, _find_formulas(openpyxl, data, title, rows), source, bad)


def _read_cells(sheet: Any) -> list[tuple[int, list[Any]]]:
    """The rows of a sheet that are not empty, with their numbers and without empty cells at the end."""
    sheet.reset_dimensions()  # a stored size may be wrong
    rows = []
    for number, row in enumerate(sheet.iter_rows(), 1):
        cells = [_Failed(cell.value) if cell.data_type == FAILED else _convert(cell.value) for cell in row]
        while cells and cells[-1] in (None, ""):
            cells.pop()
        if cells:
            rows.append((number, cells))
    return rows


class _Failed(str):
    """The text of an error that a formula has as its value."""

    __slots__ = ()


def _convert(value: Any) -> Any:
    """Convert dates and times to ISO 8601 text; a date is stored as the beginning of its day."""
    if isinstance(value, datetime.datetime):
        return (value.date() if value.time() == datetime.time() else value).isoformat()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else value


def _find_formulas(
    openpyxl: Any, data: bytes, title: str, rows: Sequence[tuple[int, list[Any]]]
) -> dict[int, set[int]]:
    """The columns of formulas by row, from 0; searched only where a cell is empty, as a formula without value is."""
    width = len(rows[0][1])
    if all(len(cells) >= width and None not in cells for _, cells in rows):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True)[title]
    sheet.reset_dimensions()
    return {
        number: {column for column, cell in enumerate(row) if cell.data_type == FORMULA}
        for number, row in enumerate(sheet.iter_rows(), 1)
    }


def _parse_rows(
    rows: Sequence[tuple[int, list[Any]]], formulas: dict[int, set[int]], source: Source, bad: BadRows
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Combine the header with each row."""
    (first, names), *others = rows
    header = ["" if name is None else str(name).strip() for name in names]
    error = check_header(header, ", ".join(header))
    if error:
        bad.refuse(Origin(source.name, first), error)
        return
    for number, cells in others:
        cells = cells + [None] * (len(header) - len(cells))
        try:
            _check_cells(cells, header, formulas.get(number, set()))
        except RowError as problem:
            bad.add(Origin(source.name, number), problem)
            continue
        yield number, {name: "" if cell is None else cell for name, cell in zip(header, cells, strict=True) if name}


def _check_cells(cells: Sequence[Any], header: Sequence[str], formulas: set[int]) -> None:
    if len(cells) > len(header):
        what = f"the row has {len(cells)} cells, but the header has {len(header)}"
        raise RowError(what, cells[-1], "give each column a name in the header, or empty the cells beyond it")
    for column, (name, cell) in enumerate(zip(header, cells, strict=True)):
        if isinstance(cell, _Failed):
            raise RowError(f"the formula in '{quote(name)}' has an error as its value", cell, "correct the formula")
        if cell is None and column in formulas:
            what = f"the formula in '{quote(name)}' has no stored value"
            raise RowError(what, fix="open the workbook and save it, which computes its formulas")
