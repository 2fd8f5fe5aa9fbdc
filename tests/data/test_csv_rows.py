"""CSV as spreadsheets write it, and as they should not."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.row_files import refusal

from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.data.readers.csv_rows import parse_csv_rows
from dpo_lightning.data.readers.source import Source
from dpo_lightning.errors import ExitCode


def read(text: str) -> list[tuple[int, dict[str, str]]]:
    bad = BadRows()
    rows = list(parse_csv_rows(text, Source("f"), bad))
    bad.raise_if_any()
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
        ("prompt;chosen;rejected\n1;2;3", ["semicolons", "f:1", "prompt;chosen;rejected", "commas"]),
        ('"prompt";"chosen"\n"1";"2"', ["semicolons", "f:1"]),
        ("prompt\tchosen\n1\t2", ["tabs", "f:1"]),
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
