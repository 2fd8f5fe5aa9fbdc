"""Parquet files and data sets of the hub; the hub itself is replaced by a stub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.row_files import OTHER, PAIR, refusal, user, written

from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode


def table(folder: Path, rows: list[dict[str, Any]], name: str = "rows.parquet") -> str:
    path = str(folder / name)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_rows_are_numbered_from_one(tmp_path: Path) -> None:
    path = table(tmp_path, [PAIR, OTHER], "misnamed.json")
    assert [(str(row.origin), row.values) for row in read_rows(path)] == [
        (f"{path}:1", PAIR),
        (f"{path}:2", OTHER),
    ]


def test_nulls_that_arrow_adds_inside_are_dropped_and_nulls_of_columns_kept(tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "1"}}]}
    other = {"role": "assistant", "tool_calls": [{"name": "g", "arguments": {"y": "1"}}]}
    path = table(tmp_path, [{"messages": [user("a"), call, other], "group": None}])
    (row,) = read_rows(path)
    assert row.values == {"messages": [user("a"), call, other], "group": None}


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file(tmp_path: Path, kept: float) -> None:
    whole = Path(table(tmp_path, [PAIR, OTHER])).read_bytes()
    path = written(tmp_path, whole[: int(len(whole) * kept)], "cut.parquet")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "truncated or damaged", f"{path}:1")


def test_a_text_file_that_is_called_parquet(tmp_path: Path) -> None:
    path = written(tmp_path, '{"a": 1}\n', "rows.parquet")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "not a parquet file", f"{path}:1")


def hub(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://org/name", ("org/name", None, "train")),
        ("hf://org/name:test", ("org/name", None, "test")),
        ("hf://org/my-set.v2/config:train[:10]", ("org/my-set.v2", "config", "train[:10]")),
        ("hf://org/name/config", ("org/name", "config", "train")),
    ],
)
def test_a_hub_set(monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[str | None, ...]) -> None:
    asked = []

    def load(path: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((path, config, split))
        return [PAIR, OTHER]

    hub(monkeypatch, load)
    assert [str(row.origin) for row in read_rows(name)] == [f"{name}:1", f"{name}:2"]
    assert asked == [expected]


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach\nthe Hub"), FileNotFoundError("x"), ValueError("split")]
)
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    hub(monkeypatch, load)
    refusal(
        lambda: list(read_rows("hf://org/name")),
        ExitCode.INPUT_MISSING,
        "hf://org/name",
        type(error).__name__,
    )


@pytest.mark.parametrize("name", ["hf://", "hf://name", "hf://a/b/c/d", "hf://a b/c", "hf://a/b:"])
def test_another_form_of_a_hub_id(name: str) -> None:
    refusal(lambda: list(read_rows(name)), ExitCode.CONFIG, name, "hf://org/name")
