"""One object for a whole file: which value has the rows, and rows by column."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, assistant, refusal, user, written

from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode

ROWS = [PAIR, OTHER]
COLUMNS = {name: [row[name] for row in ROWS] for name in PAIR}
MESSAGES = [user("a"), assistant("b")]
needs_jq = pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("value", "note"),
    [
        ({"data": ROWS}, "rows are in 'data'"),
        ({"version": 1, "data": ROWS, "tags": ["a", "b"], "info": {"x": 1}}, "rows are in 'data'"),
        ({"schema": {"fields": [{"name": "prompt"}]}, "data": ROWS}, "rows are in 'data'"),
        (COLUMNS, "one object with the rows by column"),
        ({name: dict(zip("01", texts, strict=True)) for name, texts in COLUMNS.items()}, "rows by column"),
        (dict(zip("01", ROWS, strict=True)), "rows by number"),
        (
            {"columns": list(PAIR), "index": [0, 1], "data": [list(row.values()) for row in ROWS]},
            "their names in 'columns'",
        ),
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows"])
def test_rows_in_one_object(tmp_path: Path, value: Any, note: str, indent: int | None, name: str) -> None:
    path, notes = written(tmp_path, "\n" + json.dumps(value, indent=indent) + "\n", name), []
    assert [row.values for row in read_rows(path, notes=notes)] == ROWS
    assert len(notes) == 1
    assert notes[0].startswith(f"{path}: ")
    assert notes[0].endswith(note)


def test_the_lines_of_rows_in_a_list(tmp_path: Path) -> None:
    path = written(tmp_path, '{\n"data":\n[\n{"a": 1},\n\n{"a": 2}, {"a": 3}\n],\n"x": [4]}', "rows.json")
    assert [str(row.origin) for row in read_rows(path)] == [f"{path}:4", f"{path}:6", f"{path}:6 (row 2 of the line)"]


@pytest.mark.parametrize(
    "value",
    [
        PAIR,
        {"messages": MESSAGES},
        {"messages": MESSAGES, "tools": [{"name": "f"}]},
        {"conversations": [{"from": "human", "value": "a"}], "items": [{"a": 1}]},
        {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]},
        {"prompt": "a", "responses": [{"text": "a"}, {"text": "b"}]},
        {"a": {"x": 1}, "b": {"x": 2}},
        {"a": {}, "b": []},
        {"data": [], "x": 1},
        {"data": [1, {"a": 2}], "x": 1},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_what_is_one_row(tmp_path: Path, value: Any, indent: int | None) -> None:
    notes: list[str] = []
    (row,) = read_rows(written(tmp_path, json.dumps(value, indent=indent), "rows.json"), notes=notes)
    assert row.values == value
    assert not notes


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": NaN, "b": "x"}', "NaN is not JSON"),
        ('{"a": [1, 1e999], "b": [2, 3]}', "too large"),
        ('{"a": [1], "a": [2]}', "duplicate key 'a'"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ('{"data": [{"a": 1}, 7]}', "the row is a number, not an object"),
    ],
)
def test_the_checks_of_json_hold_inside_one_object(tmp_path: Path, text: str, what: str) -> None:
    path = written(tmp_path, text, "rows.json")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, what, f"{path}:1")


def test_a_number_beside_the_list(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": 5, "data": [{"a": 1}]}', "rows.json")
    assert [row.values for row in read_rows(path)] == [{"a": 1}]


def test_columns_of_different_lengths(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"a": [1, 2], "b": [3]}), "rows.json")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "different lengths: 'a' 2, 'b' 1", f"{path}:1")


@needs_jq
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("key", ["train", "my rows'", 'a"b', "학습"])
def test_several_lists_and_the_command_for_one(tmp_path: Path, key: str, packed: bool) -> None:
    text = json.dumps({key: ROWS, "test": [PAIR]}).encode()
    path = written(tmp_path, gzip.compress(text) if packed else text, "x.json.gz" if packed else "x.json")
    message = refusal(lambda: list(read_rows(path)), ExitCode.DATA, "rows are in", "'test'", f"{path}:1")
    command = message.rpartition("of its own: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    assert [row.values for row in read_rows(command.rpartition("> ")[2])] == ROWS


@needs_jq
@pytest.mark.parametrize(
    "text", ["\n".join(json.dumps(json.dumps(row)) for row in ROWS), json.dumps(list(map(json.dumps, ROWS)))]
)
@pytest.mark.parametrize("name", ["x.jsonl", "x", "x.txt"])
def test_json_inside_json_strings(tmp_path: Path, text: str, name: str) -> None:
    path = written(tmp_path, text, name)
    if name != "x.jsonl" and text.startswith("["):
        return
    message = refusal(lambda: list(read_rows(path)), ExitCode.DATA, "JSON inside a JSON string", f"{path}:1")
    command = message.rpartition("fix: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    assert [row.values for row in read_rows(command.rpartition("> ")[2])] == ROWS


@needs_jq
def test_objects_over_several_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "\n".join(json.dumps(row, indent=1) for row in ROWS))
    message = refusal(lambda: list(read_rows(path)), ExitCode.DATA, "an object over several lines")
    command = message.rpartition("fix: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    assert [row.values for row in read_rows(command.rpartition("> ")[2])] == ROWS


@pytest.mark.parametrize("text", ["\n".join(map(str, ROWS)), str(ROWS), "\n" + str(PAIR)])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.yaml", "x"])
def test_rows_that_python_printed(tmp_path: Path, text: str, name: str) -> None:
    path = written(tmp_path, text, name)
    message = refusal(lambda: list(read_rows(path)), ExitCode.DATA, "Python dicts", f"{path}:1")
    command = message.rpartition("fix: ")[2]
    subprocess.run(["sh", "-c", command.replace("python ", "python3 ", 1)], check=True)
    assert [row.values for row in read_rows(command.rpartition("> ")[2])] == ROWS[: 1 + ("heron" in text)]
