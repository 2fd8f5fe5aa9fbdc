"""The reader as a whole: the format is told by content, and nothing but a `UserError` leaves it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.row_files import OTHER, PAIR, jsonl, refusal, written

from dpo_lightning.data.readers.sources import read_files, read_rows
from dpo_lightning.errors import ExitCode, UserError

LINES = f"{json.dumps(PAIR)}\n{json.dumps(OTHER)}\n"
ARRAY = json.dumps([PAIR, OTHER], indent=1)
CSV = "prompt,chosen,rejected\n" + "".join(
    ",".join(f'"{value}"' for value in row.values()) + "\r\n" for row in (PAIR, OTHER)
)
TORCHLESS = """
import sys
import dpo_lightning.data.load as schema
from dpo_lightning.data.kinds.pairs import PairKind
schema.load_examples(PairKind, sys.argv[1])
heavy = {"torch", "lightning", "transformers", "datasets", "pyarrow"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


@pytest.mark.parametrize("text", [LINES, ARRAY, CSV])
@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.gz", "rows.csv"])
def test_the_format_is_told_by_content(tmp_path: Path, text: str, name: str) -> None:
    for data in (text.encode(), text.encode("utf-8-sig"), gzip.compress(text.encode())):
        assert [row.values for row in read_rows(written(tmp_path, data, name))] == [PAIR, OTHER]


@pytest.mark.parametrize(("text", "name"), [(ARRAY, "rows.jsonl"), (LINES, "rows.json")])
def test_a_wrong_suffix(tmp_path: Path, text: str, name: str) -> None:
    assert [row.values for row in read_rows(written(tmp_path, text, name))] == [PAIR, OTHER]


def test_strings_are_composed_and_else_untouched(tmp_path: Path) -> None:
    text = " 서울 \n"
    path = jsonl(tmp_path, [{"a": unicodedata.normalize("NFD", text), "b": text}])
    (row,) = read_rows(path)
    assert row.values == {"a": text, "b": text}
    assert row.recomposed == {"a"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows"])
@pytest.mark.parametrize("text", ["", "\n \n\n", "[]", "\ufeff"])
def test_no_rows(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path, text, name)
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, f"{path}:1")


def test_a_header_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "prompt,chosen,rejected\n", "rows.csv")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "no rows", f"{path}:1")


@pytest.mark.parametrize("row", ["[1]", '"text"', "7", "null", "true", "[" * 60 + "]" * 60])
def test_a_row_that_is_no_object(tmp_path: Path, row: str) -> None:
    path = jsonl(tmp_path, [PAIR, row, OTHER])
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "not an object", f"{path}:2")


def test_all_bad_rows_of_a_file_are_told_after_the_good_ones(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ['{"a": NaN}', PAIR, '{"a": "\\u0000"}', '{"a": "\\ud800"}', "{", OTHER])
    rows = []
    with pytest.raises(UserError):
        rows += read_rows(path)
    seen = []

    def gather() -> None:
        seen.extend(read_rows(path))

    refusal(
        gather,
        ExitCode.DATA,
        f"{path}:1",
        "U+0000",
        f"{path}:3",
        "U+D800",
        f"{path}:4",
        f"line 5 ends early at {path}:5",
    )


def test_stops_after_a_thousand_bad_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ["{"] * 3000)
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, f"stopped after 1,000 bad rows at {path}:1001")


def test_ten_megabytes_in_one_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PAIR, {**OTHER, "chosen": "x" * 10_000_000}])
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "'chosen' is longer than 1,000,000 bytes", f"{path}:2")


def test_several_files_are_chained_and_checked_first(tmp_path: Path) -> None:
    one, two = jsonl(tmp_path, [PAIR], "one.jsonl"), written(tmp_path, json.dumps([OTHER]), "two.json")
    assert [str(row.origin) for row in read_files([one, two])] == [f"{one}:1", f"{two}:1"]
    assert [str(row.origin) for row in read_files(one)] == [f"{one}:1"]
    rows = read_files([one, str(tmp_path / "gone.json")])
    refusal(lambda: next(rows), ExitCode.INPUT_MISSING, "gone.json")
    refusal(lambda: list(read_files([])), ExitCode.CONFIG)


def test_bad_rows_of_several_files_travel_together(tmp_path: Path) -> None:
    one, two = jsonl(tmp_path, ["{"], "one.jsonl"), jsonl(tmp_path, ["}"], "two.jsonl")
    refusal(lambda: list(read_files([one, two])), ExitCode.DATA, f"{one}:1", f"{two}:1")


def test_reading_imports_nothing_heavy(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PAIR, OTHER])
    done = subprocess.run([sys.executable, "-c", TORCHLESS, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PIECES = st.sampled_from(
    ["{", "}", "[", "]", ",", '"', "\\", "\n", "\r", ":", "NaN", "1", "a;b", "\0", "\ufeff", "가", "\\ud800"]
)


def only_user_errors(folder: Path, data: bytes, name: str) -> None:
    try:
        rows: list[Any] = list(read_rows(written(folder, data, name)))
    except UserError as error:
        str(error).encode()
    else:
        assert rows
        json.dumps([row.values for row in rows], ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["a.json", "a.csv", "a.jsonl.gz", "a"]), st.booleans())
def test_random_bytes(folder: Path, data: bytes, name: str, pack: bool) -> None:
    only_user_errors(folder, gzip.compress(data) if pack else data, name)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join), st.sampled_from(["a.json", "a.csv", "a"]))
def test_random_pieces_of_json_and_csv(folder: Path, text: str, name: str) -> None:
    only_user_errors(folder, text.encode(), name)


@settings(deadline=None)
@given(st.lists(JSON_VALUES, max_size=3), st.booleans())
def test_random_json(folder: Path, values: list[Any], as_array: bool) -> None:
    text = json.dumps(values) if as_array else "\n".join(map(json.dumps, values))
    only_user_errors(folder, text.encode(), "a.json")
