"""Texts that cannot be used: an error in a column that is read, and in no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.row_files import OTHER, PAIR, jsonl, refusal, written

from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

BAD = ["a\x80b", "a\0", "x" * 1_000_001, "\ud800", [["\x07"]], {"e\u0301": 1, "é": 2}]


@pytest.mark.parametrize("value", BAD)
def test_a_column_that_is_not_read(tmp_path: Path, value: object) -> None:
    lines = [json.dumps({**row, "passages": value}) for row in (PAIR, OTHER)]
    examples, notes = load_examples(PairKind, jsonl(tmp_path, lines))
    clean, other = load_examples(PairKind, jsonl(tmp_path, [{**row, "passages": "x"} for row in (PAIR, OTHER)]))
    assert examples == clean
    assert notes == other


@pytest.mark.parametrize("name", ["prompt", "chosen", "system", "history", "group"])
def test_a_column_that_is_read(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path, [PAIR, {**OTHER, name: "a\x80b"}])
    message = refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"U+0080 in '{name}' at {path}:2")
    assert message.count("error: ") == 1


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{**row, "question": row["prompt"] + "\x80", "prompt": "\x07"} for row in (PAIR, OTHER)]
    path = jsonl(tmp_path, rows)
    message = refusal(
        lambda: load_examples(PairKind, path, columns={"prompt": "question"}), ExitCode.DATA, "U+0080 in 'question'"
    )
    assert "U+0007" not in message
    message = refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "U+0007 in 'prompt'")
    assert "U+0080" not in message


def test_a_column_that_only_other_rows_of_the_kind_read(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "context": "\x07"}, {"prompt": "c", "completion": "d", "context": "c"}]
    assert len(load_examples(SFTKind, jsonl(tmp_path, rows))[0]) == 2


def test_notes_of_the_readers_are_notes_of_the_set(tmp_path: Path) -> None:
    text = "prompt;chosen;rejected\n" + "".join(";".join(row.values()) + "\n" for row in (PAIR, OTHER))
    one, two = written(tmp_path, text, "1.csv"), written(tmp_path, text, "2.csv")
    _, notes = load_examples(PairKind, one)
    assert notes == [f"{one}: separated by semicolons"]
    _, notes = load_examples(PairKind, str(tmp_path))
    assert notes[:2] == [f"{tmp_path}: 2 files, from 1.csv to 2.csv", f"{one}, {two}: separated by semicolons"]
