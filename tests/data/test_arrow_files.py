"""Arrow files and streams, and both versions of Feather."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc
from support.row_files import OTHER, PAIR, refusal, user, written

from dpo_lightning.data.readers.sources import read_rows
from dpo_lightning.errors import ExitCode, UserError

ROWS = [{**PAIR, "messages": [user("a"), {**user("b"), "name": "c"}], "group": None}, {**OTHER, "group": "x"}]
EXPECTED = [ROWS[0], {**ROWS[1], "messages": None}]
FORMS = ["file", "stream", "feather", "feather1"]


def write(path: Path, form: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    table = pa.Table.from_pylist(rows)
    if form == "feather":
        feather.write_feather(table, str(path))
    elif form == "feather1":
        feather.write_feather(table.drop_columns(["messages", "group"]), str(path), version=1)
    else:
        with (ipc.new_file if form == "file" else ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table.slice(0, 1))
            writer.write_table(table.slice(1))
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rows.arrow", "rows.json"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_rows(tmp_path: Path, form: str, name: str) -> None:
    path, notes = write(tmp_path / name, form), []
    rows = list(read_rows(str(path), notes=notes))
    assert [str(row.origin) for row in rows] == [f"{path}:1", f"{path}:2"]
    assert [dict(row.values) for row in rows] == ([PAIR, OTHER] if form == "feather1" else EXPECTED)
    assert not notes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_truncated(tmp_path: Path, form: str, share: float) -> None:
    whole = write(tmp_path / "whole", form).read_bytes()
    path = written(tmp_path, whole[: int(len(whole) * share)], "cut.arrow")
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, "truncated or damaged", f"{path}:")


def test_a_stream_that_ends_between_two_batches(tmp_path: Path) -> None:
    whole = write(tmp_path / "rows.arrow", "stream").read_bytes()
    path, notes = written(tmp_path, whole[:-8], "cut.arrow"), []
    assert len(list(read_rows(path, notes=notes))) == 2
    assert notes == [f"{path}: an Arrow stream without an end mark: if rows are missing, the file was cut off"]


@pytest.mark.parametrize("name", ["rows.arrow", "rows.feather"])
def test_text_that_is_called_a_table(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, '{"a": 1}\n', name)
    refusal(lambda: list(read_rows(path)), ExitCode.DATA, f"{name[5:]} file", "rename", f"{path}:1")


@settings(deadline=None, max_examples=200)
@given(form=st.sampled_from(["file", "stream"]), place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_changed_byte_raises_nothing_but_errors_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, form: str, place: float, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = bytearray(write(folder / "whole.arrow", form).read_bytes())
    data[int(place * (len(data) - 1))] = value
    try:
        list(read_rows(written(folder, bytes(data), "changed.arrow")))
    except UserError as error:
        str(error).encode()
