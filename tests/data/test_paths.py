"""Paths that cannot be read: what each is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.row_files import refusal, written

from dpo_lightning.data.readers.paths import check_path, format_path, read_bytes
from dpo_lightning.errors import ExitCode


@pytest.mark.parametrize("url", ["http://a.example/rows.jsonl", "https://a.example/b", "s3://bucket/rows", "HTTP://A"])
def test_a_url_is_not_a_path(url: str) -> None:
    refusal(lambda: check_path(url), ExitCode.CONFIG, url, "download the data", "hf://org/name")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path, "", "preference_train.json")
    path = str(tmp_path / "prefrence_train.json")
    refusal(
        lambda: check_path(path),
        ExitCode.INPUT_MISSING,
        "no such file",
        "did you mean",
        "preference_train.json",
    )


def test_a_missing_file_with_no_likeness_lists_the_data_files(tmp_path: Path) -> None:
    written(tmp_path, "", "zebra.csv")
    refusal(lambda: check_path(str(tmp_path / "rows.json")), ExitCode.INPUT_MISSING, "zebra.csv")


@pytest.mark.parametrize("between", [",", ", ", ";", " "])
def test_several_files_in_one_text_are_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "", "a.jsonl")
    written(tmp_path, "", "b.jsonl")
    refusal(lambda: check_path(f"a.jsonl{between}b.jsonl"), ExitCode.INPUT_MISSING, "'[a.jsonl,b.jsonl]'")
    refusal(lambda: check_path(f"a.jsonl{between}c.jsonl"), ExitCode.INPUT_MISSING, "did you mean")


@pytest.mark.parametrize("word", ["none", "None", "false"])
def test_a_word_for_no_file_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(lambda: check_path(word), ExitCode.INPUT_MISSING, "no such file", "null for no file")


def test_a_missing_folder_names_the_one_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    refusal(lambda: check_path(str(tmp_path / "dataset" / "a.json")), ExitCode.INPUT_MISSING, "datasets")


def test_a_hub_name_is_told_how_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(lambda: check_path("org/name"), ExitCode.INPUT_MISSING, "hf://org/name")


@pytest.mark.parametrize("path", ["", "a\nb", "x" * 5000, "a/" * 3000, "caf\udce9.json"])
def test_odd_paths(path: str) -> None:
    refusal(lambda: check_path(path), ExitCode.INPUT_MISSING)


def test_nul_in_a_path() -> None:
    refusal(lambda: check_path("a\0b"), ExitCode.CONFIG, "NUL", "a\\x00b")


def test_a_folder_lists_its_files(tmp_path: Path) -> None:
    written(tmp_path, "", "a.jsonl")
    refusal(lambda: check_path(str(tmp_path)), ExitCode.INPUT_MISSING, "a folder", "a.jsonl")


def test_a_file_as_a_folder(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    refusal(lambda: check_path(path + "/a.json"), ExitCode.INPUT_MISSING, "no such file")


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    loop, dangling = tmp_path / "loop", tmp_path / "dangling"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "gone.json")
    refusal(lambda: check_path(str(loop)), ExitCode.INPUT_MISSING, "back to itself")
    refusal(lambda: check_path(str(dangling)), ExitCode.INPUT_MISSING, "gone.json")


def test_a_good_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written(tmp_path, "text"))
    assert read_bytes(str(link)) == b"text"
    assert read_bytes(str(link), 2) == b"te"


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refusal(lambda: read_bytes(str(pipe)), ExitCode.INPUT_MISSING, "a pipe")
    refusal(lambda: read_bytes("/dev/zero"), ExitCode.INPUT_MISSING, "a device")


def test_an_unreadable_file_tells_owner_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "{}")
    Path(path).chmod(0o200)

    def barred(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", barred)  # root may read whatever the mode says
    refusal(lambda: read_bytes(path), ExitCode.INPUT_MISSING, "no permission", "mode is 0200", "the owner of")


def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "{}")

    def failing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", failing)
    refusal(lambda: read_bytes(path), ExitCode.IO, "Input/output error")


def test_names_are_printed_escaped() -> None:
    assert format_path("가\n\udce9") == "가\\n\\udce9"
