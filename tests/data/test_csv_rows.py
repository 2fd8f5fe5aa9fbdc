"""CSV as spreadsheets write it, and as they should not."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.row_files import refusal

from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.data.readers.csv_rows import SEPARATORS, parse_csv_rows
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_window import TextWindow
from dpo_lightning.errors import ExitCode


def read(text: str, *notes: str) -> list[tuple[int, dict[str, str]]]:
    bad, source = BadRows(), Source("f")
    rows = list(parse_csv_rows(TextWindow([text]), source, bad))
    bad.raise_if_any()
    assert source.notes == list(notes)
    return rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_with_the_line_of_each(end: str) -> None:
    text = end.join(["a, b ", "1,2", "", '"x', 'y","say ""hi"", ok"', ' 5" ,', "7,8"])
    rows = [
        (2, {"a": "1", "b": "2"}),
        (4, {"a": f"x{end}y", "b": 'say "hi", ok'}),
        (6, {"a": ' 5" ', "b": ""}),
        (7, {"a": "7", "b": "8"}),
    ]
    assert read(text) == rows
    assert read(text + end) == rows


def test_the_index_that_pandas_writes_is_left_out() -> None:
    assert read(",a,b\n0,x,y\n") == [(2, {"a": "x", "b": "y"})]


@pytest.mark.parametrize("text", ["", "\n\n", "a,b", "a,b\n\n"])
def test_no_rows(text: str) -> None:
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("prompt;chosen, better;rejected\n1;2;3", ["commas and semicolons", "f:1", "prompt;chosen, better", "Excel"]),
        ("prompt;chosen\trejected\n1;2;3", ["semicolons and tabs", "f:1"]),
        ("sep=:\na:b\n1:2", ["separated by ':'", "f:1"]),
        ("a;b\n1;2;3\n4;5", ["the row has 3 fields, but the header has 2 at f:2", "contains semicolons in quotes"]),
        ('a;b\n1; "x"', ["a space before a quote at f:2", "semicolons separate the fields"]),
        ("a,,b\n1,2,3", ["empty or a repeated name", "a,,b"]),
        ("a,b,a\n1,2,3", ["empty or a repeated name", "a,b,a"]),
        (
            "a,b\n1,2,3\n4\n5,6",
            ["the row has 3 fields, but the header has 2 at f:2", "the row has 1 field, but the header has 2 at f:3"],
        ),
        ('a,b\n1,2\n"x\ny","open\n3,4\n', ["a quote is not closed at f:4", "open"]),
        ('a,b\n"x\ny\nz', ["a quote is not closed at f:2"]),
        ('a,b\n"x,1\n"y","2"\n', ["a quote is not closed at f:2"]),
        ('a,b\n"x"y,1\n', ["a quote is not closed at f:2"]),
        ('a,b\n1, "x, y"\n', ["a space before a quote at f:2"]),
    ],
)
def test_what_is_not_csv(text: str, parts: list[str]) -> None:
    refusal(lambda: read(text), ExitCode.DATA, *parts)


FIELDS = st.text(st.sampled_from('ab,"\n\r\t 가;'), max_size=6)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=5))
def test_reads_what_the_csv_module_writes(rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    assert [tuple(values.values()) for _, values in read(buffer.getvalue())] == rows


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_other_separators(separator: str, name: str, end: str) -> None:
    lines = ['a|"b, c"', "1, one|2", "", '"x', 'y||z, """|', "7|8"]
    text = end.join(line.replace("|", separator) for line in lines)
    rows = [
        (2, {"a": "1, one", "b, c": "2"}),
        (4, {"a": f'x{end}y{separator}{separator}z, "', "b, c": ""}),
        (6, {"a": "7", "b, c": "8"}),
    ]
    assert read(text, f"separated by {name}") == rows
    assert read(text + end, f"separated by {name}") == rows


@pytest.mark.parametrize(
    "text", ["a,b;c;d\n1,2", '"a;b;c",d\n1,2', "text\nx;y", "a,b;c\n1,2", "sep=,\na,b;c;d\n1,2", "a,b\n1;2;3,4;5;6"]
)
def test_what_is_separated_by_commas(text: str) -> None:
    if text.startswith("a,b;c;d"):
        refusal(lambda: read(text), ExitCode.DATA, "commas and semicolons")
        return
    (row,) = read(text)
    assert len(row[1]) == (1 if text.startswith("text") else 2)


def test_the_separator_that_excel_declares() -> None:
    assert read("sep=;\r\na;b,c\r\n1,2;3\r\n", "separated by semicolons") == [(3, {"a": "1,2", "b,c": "3"})]


def test_line_ends_of_old_macs() -> None:
    assert read('a,b\r1,2\r\r"x\ny","z\rw"\r') == [(2, {"a": "1", "b": "2"}), (4, {"a": "x\ny", "b": "z\rw"})]


def test_a_carriage_return_inside_a_field_of_a_file_with_line_feeds() -> None:
    assert read("a,b\n1\r2,3\n") == [(2, {"a": "1\r2", "b": "3"})]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@given(rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=5))
def test_reads_what_the_csv_module_writes_with_any_separator(
    separator: str, end: str, rows: list[tuple[str, str]]
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, delimiter=separator, lineterminator=end)
    writer.writerows([("a", "b"), *rows])
    notes = [f"separated by {SEPARATORS[separator]}"] if separator != "," else []
    text = buffer.getvalue()
    assert [tuple(values.values()) for _, values in read(text, *notes)] == rows


@pytest.mark.parametrize("text", ["a,b\n1,2\n\0\0\0\0", "a,b\0,c\n1,2,3\n"])
def test_nul_bytes_are_named_as_such(text: str) -> None:
    """At the end of a file that was not written, they are no row with too few fields."""
    refusal(lambda: read(text), ExitCode.DATA, "a line with NUL bytes", "download the file again")


def test_a_row_in_place_of_the_header_with_equal_fields() -> None:
    refusal(lambda: read("Why?,Yes.,Yes.\n"), ExitCode.DATA, "repeated name", "write a header before it")
