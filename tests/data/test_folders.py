"""Folders of data files: which are read, in which order, and which have to be named."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet
from support.row_files import OTHER, PAIR, jsonl, refusal

from dpo_lightning.data.readers import folders
from dpo_lightning.data.readers.folders import list_files
from dpo_lightning.data.readers.sources import read_files, read_rows
from dpo_lightning.errors import ExitCode

ROWS = [{**PAIR, "prompt": f"Question {number}?"} for number in range(6)]


def values(path: Path | str, notes: list[str] | None = None) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(str(path), notes=notes)]


def shard(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    else:
        jsonl(path.parent, rows, path.name)
    return path


def saved(folder: Path, rows: list[dict[str, Any]], count: int = 2, **state: Any) -> Path:
    """A folder like that of `Dataset.save_to_disk`; its files are listed in an order that is not the sorted one."""
    names = [f"data-{number:05}-of-{count:05}.arrow" for number in range(count)][::-1]
    for number, name in enumerate(names):
        shard(folder / name, rows[number * len(rows) // count : (number + 1) * len(rows) // count])
    entries = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": entries, "_split": "train", **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["data-00000-of-00003.parquet", "data-00001-of-00003.parquet", "data-00002-of-00003.parquet"],
        ["part-1.jsonl", "part-2.jsonl", "part-10.jsonl"],
        ["a/b/c/0000.parquet", "a/b/c/0001.parquet"],
        ["data/train-00001-of-00002.parquet", "data/train-00002-of-00002.parquet"],
        ["train/0.jsonl", "train/1.jsonl"],
        ["name-test.arrow"],
        ["rows.jsonl"],
    ],
)
def test_the_files_of_one_set_are_read_in_order(tmp_path: Path, names: list[str]) -> None:
    for number, name in reversed(list(enumerate(names))):
        shard(tmp_path / name, ROWS[number * 2 : number * 2 + 2])
    for name in ("README.md", ".gitattributes", "dataset_infos.json", "dataset_info.json", ".cache.json", "_SUCCESS"):
        (tmp_path / name).write_text("{}")
    notes: list[str] = []
    rows = list(read_rows(str(tmp_path), notes=notes))
    assert [row.values for row in rows] == ROWS[: 2 * len(names)]
    assert [str(row.origin) for row in rows] == [f"{tmp_path / name}:{line}" for name in names for line in (1, 2)]
    several = f"{len(names)} files, from {names[0]} to {names[-1]}"
    assert notes == [f"{tmp_path}: {names[0] if len(names) == 1 else several}"]


def test_a_pattern(tmp_path: Path) -> None:
    for number, name in enumerate(["train-2.jsonl", "train-10.jsonl", "test-1.jsonl"]):
        shard(tmp_path / name, ROWS[number : number + 1])
    assert values(f"{tmp_path}/train-*.jsonl") == ROWS[:2]
    refusal(lambda: values(f"{tmp_path}/none-*.jsonl"), ExitCode.INPUT_MISSING, "no such file")


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["train.jsonl", "test.jsonl"], ["test.jsonl", "train.jsonl"]),
        (["rows.jsonl", "validation.jsonl"], ["rows.jsonl", "validation.jsonl"]),
        (["a.jsonl", "b.csv"], ["a.jsonl", "b.csv"]),
        (["a.jsonl", "a.jsonl.gz"], ["a.jsonl", "a.jsonl.gz"]),
        (
            ["data/train-0-of-2.parquet", "data/train-1-of-2.parquet", "data/test-0-of-1.parquet"],
            ["data/train-*.parquet"],
        ),
        (["train/0.jsonl", "train/1.jsonl", "test/0.jsonl"], ["train", "test/0.jsonl"]),
        (["en/0.jsonl", "en/1.jsonl", "ko/0.jsonl"], ["en", "ko/0.jsonl"]),
        (["part.jsonl", "old/part.jsonl"], ["part.jsonl", "old/part.jsonl"]),
    ],
)
def test_several_sets_are_named_and_each_name_is_read(tmp_path: Path, names: list[str], named: list[str]) -> None:
    for name in names:
        shard(tmp_path / name, ROWS[:2])
    message = refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "several splits", "name one of them")
    paths = shlex.split(message.rpartition("name one of them: ")[2].replace(" or ", " "))
    assert set(paths) >= {str(tmp_path / name) for name in named}
    counts = [len(list_files(path)) for path in paths]
    assert sum(counts) == len(names)


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    refusal(lambda: values(""), ExitCode.INPUT_MISSING)
    assert values(".") == ROWS


def test_a_missing_part(tmp_path: Path) -> None:
    for number in (0, 2):
        shard(tmp_path / f"data-0000{number}-of-00003.jsonl", ROWS[:2])
    refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "part 1 of 3 is missing", str(tmp_path))


def test_a_saved_data_set(tmp_path: Path) -> None:
    notes: list[str] = []
    assert values(saved(tmp_path / "saved", ROWS, 3), notes) == ROWS
    assert "3 files, from data-00002-of-00003.arrow to data-00000-of-00003.arrow" in notes[0]


def test_a_data_set_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    shuffled = datasets.Dataset.from_list(ROWS).shuffle(seed=1).select(range(5))
    shuffled.save_to_disk(tmp_path / "one", num_shards=2)
    assert values(tmp_path / "one") == list(shuffled)
    splits = datasets.DatasetDict(train=shuffled, test=shuffled.select([0]))
    splits.save_to_disk(tmp_path / "splits")
    named = f"{tmp_path}/splits/train or {tmp_path}/splits/test"
    refusal(lambda: values(tmp_path / "splits"), ExitCode.INPUT_MISSING, "2 splits", named)
    assert values(tmp_path / "splits" / "train") == list(shuffled)
    datasets.DatasetDict(train=shuffled).save_to_disk(tmp_path / "only")
    assert values(tmp_path / "only") == list(shuffled)


def test_a_saved_data_set_with_indices(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a folder", ROWS, 2, _indices_files=[{"filename": "indices.arrow"}])
    shard(folder / "indices.arrow", [{"indices": number} for number in (3, 0)])
    message = refusal(lambda: values(folder), ExitCode.DATA, "reordered by indices", str(folder))
    command = message.rpartition("fix: ")[2].replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)
    assert values(tmp_path / "rows.parquet") == [ROWS[3], ROWS[0]]


@pytest.mark.parametrize(
    "state",
    [
        "{",
        "[]",
        '"text"',
        "{}",
        '{"_data_files": [{"filename": "../secret.arrow"}]}',
        '{"_data_files": [{"filename": "/etc/passwd"}]}',
        '{"_data_files": [{"filename": 7}]}',
        '{"_data_files": 7}',
        '{"_data_files": [7]}',
        '{"_data_files": [{"filename": "gone.arrow"}]}',
        "[" * 100_000,
    ],
)
def test_a_state_that_names_no_files_of_the_folder(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    code = ExitCode.INPUT_MISSING if "gone" in state else ExitCode.DATA
    refusal(lambda: values(tmp_path), code, str(tmp_path))


@pytest.mark.parametrize("splits", ["{", "{}", '{"splits": []}', '{"splits": ["../a"]}', '{"splits": 7}'])
def test_a_dictionary_without_splits(tmp_path: Path, splits: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(splits)
    refusal(lambda: values(tmp_path), ExitCode.DATA, "dataset_dict.json")


def test_folders_without_data(tmp_path: Path) -> None:
    refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "no data files", str(tmp_path))
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    message = refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "no data files")
    assert "dataset_infos" not in message
    shard(tmp_path / "empty.jsonl", [])
    refusal(lambda: values(tmp_path), ExitCode.DATA, "no rows")


def test_an_empty_part_is_no_error(tmp_path: Path) -> None:
    shard(tmp_path / "0.jsonl", [])
    shard(tmp_path / "1.jsonl", ROWS)
    assert values(tmp_path) == ROWS


def test_loops_of_links_are_not_followed(tmp_path: Path) -> None:
    shard(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "back to itself", "self.jsonl")
    (tmp_path / "self.jsonl").unlink()
    assert values(tmp_path) == ROWS
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "a device", "link.jsonl")


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    blob = shard(tmp_path / "blobs" / "1234", ROWS)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").symlink_to(blob)
    assert values(tmp_path / "set") == ROWS


def test_an_unreadable_file_or_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "0.jsonl", ROWS)
    closed = shard(tmp_path / "1.jsonl", ROWS)
    opened = Path.open

    def bar(path: Path, *args: Any, **options: Any) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", bar)  # root may read whatever the mode says
        refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "no permission", str(closed))

    def bar_folder(_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.os, "scandir", bar_folder)
    refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "no permission", str(tmp_path))


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_ENTRIES", 3)
    for number in range(4):
        shard(tmp_path / f"{number}.jsonl", ROWS)
    refusal(lambda: values(tmp_path), ExitCode.INPUT_MISSING, "more than 3 entries")


def test_a_folder_is_checked_before_the_first_file_is_read(tmp_path: Path) -> None:
    one = shard(tmp_path / "one.jsonl", ROWS)
    (tmp_path / "empty").mkdir()
    rows = read_files([str(one), str(tmp_path / "empty")])
    refusal(lambda: next(rows), ExitCode.INPUT_MISSING, "no data files")


def test_errors_of_rows_name_the_file_of_the_folder(tmp_path: Path) -> None:
    shard(tmp_path / "0.jsonl", [OTHER])
    jsonl(tmp_path, ["{"], "1.jsonl")
    refusal(lambda: values(tmp_path), ExitCode.DATA, f"{tmp_path}/1.jsonl:1")
    shutil.rmtree(tmp_path)
