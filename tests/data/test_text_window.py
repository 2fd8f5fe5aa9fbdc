"""Text that is read in parts: the same rows, lines and errors for parts of any size."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.row_files import PAIR, jsonl, refusal, written

from dpo_lightning.data.readers import csv_rows, text_window
from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.data.readers.csv_rows import parse_csv_rows
from dpo_lightning.data.readers.json_rows import parse_json_rows
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.data.readers.text_window import TextWindow, is_plain_utf8
from dpo_lightning.errors import ExitCode, UserError

SIZES = (1, 2, 3, 5, 7, 64)

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MARKS = [*"{}[],:\"\\-.'; \t", "\n", "\r", "\r\n", " " * 90, "\n" * 90]
SCALARS = ["null", "true", "tru", "NaN", "-Infinity", "-Inf", "1", "1.5", "1e5", "1e999", "9" * 5000]
OBJECTS = ['{"a": 1}', '{"a": 1, "a": 2}', '{"a": "\t"}', '{"a": NaN}', '{"b": [{"a": 1}]}']
CHARACTERS = ["\\u00e9", "\\ud800", "\\n", "\u00e9", "가", "\U0001f600", "\u2028", "\x85", "x" * 100]
PIECES = st.sampled_from([*MARKS, *SCALARS, *OBJECTS, *CHARACTERS])
ELEMENTS = st.lists(VALUES.map(lambda value: json.dumps(value, ensure_ascii=False)) | PIECES, max_size=6)
LINES = st.builds(
    lambda items, end, rest: end.join(items) + rest, ELEMENTS, st.sampled_from(["\n", "\r\n", "\r"]), PIECES
)
ARRAY = st.builds(
    lambda items, comma, end: "[" + comma.join(items) + end,
    ELEMENTS,
    st.sampled_from([",", ",\n", " ,\r\n ", "\n"]),
    st.sampled_from(["]", "", "]\n", "\n]x", ",]"]),
)
JSON = (
    st.lists(PIECES, max_size=20).map("".join) | LINES | ARRAY | VALUES.map(lambda value: json.dumps(value, indent=1))
)

FIELDS = ["a", "b", "", '"x\ny"', '"x""y"', '" ,"', ' "q"', '"open', "가", "z" * 80, "\r", '"a"b']
TABLE = st.builds(
    lambda start, mark, end, rows: start + end.join(mark.join(fields) for fields in [["a", "b"], *rows]),
    st.sampled_from(["", "sep=;\r\n", "sep=,\n", "sep=:\n", "\n\n", '""\n']),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.lists(st.sampled_from(FIELDS), max_size=3), max_size=6),
)
CSV = st.text(st.sampled_from('ab,"\n\r\t 가;'), max_size=40) | TABLE

Parse = Callable[[TextWindow, Source, BadRows], Iterator[tuple[int, Any]]]


def parse(parser: Parse, chunks: list[str]) -> Any:
    """All that a parser returns for a text in pieces: the rows, the notes and the errors."""
    bad, source = BadRows(most=None), Source("f.json")
    rows = list(parser(TextWindow(chunks), source, bad))
    return repr(rows), source.notes, bad.found


def cut(text: str, size: int) -> list[str]:
    return [text[place : place + size] for place in range(0, len(text), size)]


@settings(deadline=None, max_examples=300)
@given(JSON)
@example("[12345, 1.5, -7e2, true, 1")
@example('[{"a": "' + "x" * 300 + '"}, {"a": NaN}, {"a": 1, "a": 2},\n{"a" 1}, {}]')
@example('[{"a": 1}' + " " * 300 + '{"a": 2}]')
@example('[{"a": 1}]' + "\n" * 300 + "x" * 300)
@example('\n {"a": 1}' + "\n" * 200 + '{"a": 2')
@example('{"a": 1}\n{"a": 2' + " " * 29)
@example('{"a": 1}\n{"a": 2' + " " * 31)
@example('{"a": 1}\r{"a": 2}\r\r{"a": 3}')
def test_json_in_pieces(text: str) -> None:
    whole = parse(parse_json_rows, [text])
    for size in SIZES:
        assert parse(parse_json_rows, cut(text, size)) == whole


@settings(deadline=None, max_examples=300)
@given(CSV)
@example('a,b\n"x\ny","open\n3,4\n')
@example('"a","b"\r\n"1","2"\r\n')
@example('a\r1\r"x\ny"\r')
@example("sep=;\r\na;b\r\n1;2\r\n")
def test_csv_in_pieces(text: str) -> None:
    whole = parse(parse_csv_rows, [text])
    for size in SIZES:
        assert parse(parse_csv_rows, cut(text, size)) == whole


@pytest.mark.parametrize("header", ['"a', "a;b|c", '"a\n\nb",c', "\n" * 50 + '"a"'])
def test_a_header_that_is_longer_than_is_searched(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_HEADER", 8)
    text = header + "x" * 50 + '",y\n1,2\n'
    whole = parse(parse_csv_rows, [text])
    for size in SIZES:
        assert parse(parse_csv_rows, cut(text, size)) == whole


def read(path: str) -> Any:
    notes: list[str] = []
    try:
        return list(read_rows(path, notes=notes)), notes
    except UserError as error:
        return error.code, str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("window")


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(JSON, CSV, st.text(max_size=20)),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp949"]),
    st.sampled_from(["rows", "rows.json", "rows.csv", "rows.arrow"]),
)
def test_files_in_chunks(folder: Path, text: str, encoding: str, name: str) -> None:
    path = written(folder, text.encode(encoding, "replace"), name)
    whole = read(path)
    for size in SIZES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_window, "CHUNK_BYTES", size)
            assert read(path) == whole


@given(st.lists(st.sampled_from([b"a", "é".encode(), "가".encode(), b"\xea", b"\xb0", b"\x80", b"\0"]), max_size=8))
@example([b"\xea", b"a", b"\xb0", b"\x80"])
def test_what_is_plain_utf8(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    try:
        expected = "\0" not in data.decode()
    except UnicodeDecodeError:
        expected = False
    for size in SIZES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_window, "CHUNK_BYTES", size)
            assert is_plain_utf8(io.BytesIO(data)) == expected


def test_the_window_at_least_doubles() -> None:
    window = TextWindow("x" for _ in range(1000))
    sizes = []
    while not window.ended:
        window.grow()
        sizes.append(len(window.text))
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]


@pytest.mark.parametrize("change", [b"", b'{"prompt": 1', b"\xff\xff\xff\xff\n", b"\0\n"])
def test_a_file_that_changes_after_its_first_row(
    tmp_path: Path, change: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_window, "CHUNK_BYTES", 1 << 10)
    path = jsonl(tmp_path, [PAIR] * 4000)
    rows = read_rows(path)
    assert next(rows).values == PAIR
    Path(path).write_bytes(change * 100_000)
    if change.startswith(b"\xff"):
        refusal(lambda: list(rows), ExitCode.IO, "the file changed while it was read", path)
        return
    with contextlib.suppress(UserError):  # which rows are found depends on what was read before the change
        assert all(row.values in (PAIR, {}) for row in rows)
