"""`convert`: files, messages and exit codes of the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.row_files import jsonl

from dpo_lightning.commands import convert
from dpo_lightning.errors import ExitCode, UserError

ROW = {"question": "What is asked?", "gpt4_response": "Good.", "my_model_response": "Bad."}


def refuse(argv: list[str], code: ExitCode, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        convert.main(argv)
    assert caught.value.code == code
    for part in parts:
        assert part in str(caught.value)


def test_two_named_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last step of a how-to: two models' answers, one of them better."""
    source = jsonl(tmp_path, [ROW, {**ROW, "gpt4_response": ""}, {**ROW, "question": "And this?"}])
    output = tmp_path / "rows.jsonl"
    names = ["--prompt", "question", "--chosen", "gpt4_response", "--rejected", "my_model_response"]
    argv = ["--input", source, "--output", str(tmp_path / "new.jsonl"), *names]
    with caplog.at_level("INFO", "dpo_lightning"):
        assert convert.main(argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        ("What is asked?", "Good.", "Bad."),
        ("And this?", "Good.", "Bad."),
    ]
    (left,) = map(json.loads, (tmp_path / "new.left-out.jsonl").read_text().splitlines())
    assert left["reasons"] == ["'gpt4_response' is empty"]
    assert f"{tmp_path / 'new.jsonl'}: 2 rows (pairs)" in caplog.text
    assert "1  'gpt4_response' is empty" in caplog.text
    assert str(output) == source  # which is not touched
    refuse(argv, ExitCode.OUTPUT, "it exists already", "--overwrite")
    assert convert.main([*argv, "--overwrite"]) == 0


def test_options_that_errors_name_are_taken(tmp_path: Path) -> None:
    rows = [{**ROW, "context": "It was built in 1900."}] * 2
    argv = ["--input", jsonl(tmp_path, rows), "--output", str(tmp_path / "new.jsonl")]
    names = ["--prompt", "question", "--chosen", "gpt4_response", "--rejected", "my_model_response"]
    refuse([*argv, *names], ExitCode.DATA, "fix: --data.columns.input context, or --data.ignore_columns context")
    assert convert.main([*argv, *names, "--data.columns.input", "context"]) == 0
    assert "1900" in json.loads((tmp_path / "new.jsonl").read_text().splitlines()[0])["prompt"]


def test_a_file_that_left_rows_out_before_leaves_none_now(tmp_path: Path) -> None:
    output = tmp_path / "new.jsonl"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2
    argv = ["--output", str(output), "--overwrite", "--input"]
    convert.main([*argv, jsonl(tmp_path, [*rows, {"prompt": "p"}])])
    assert (tmp_path / "new.left-out.jsonl").exists()
    convert.main([*argv, jsonl(tmp_path, rows)])
    assert not (tmp_path / "new.left-out.jsonl").exists()


def test_options_that_are_wrong(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2)
    refuse([], ExitCode.CONFIG, "--input FILE")
    refuse(["--input", source], ExitCode.CONFIG, "--output FILE")
    refuse(["--input", source, "--output", str(tmp_path / "no" / "new.jsonl")], ExitCode.OUTPUT, "mkdir -p")
    refuse(["--input", source, "--output", str(tmp_path)], ExitCode.OUTPUT, "it exists already")
    argv = ["--input", source, "--output", str(tmp_path / "new.jsonl")]
    refuse([*argv, "--from", "opnai"], ExitCode.CONFIG, "'opnai' is not a format", "openai-preference")
    refuse([*argv, "--from", "pairs", "--to", "sft"], ExitCode.CONFIG, "pairs rows cannot be converted to sft rows")
    refuse([*argv, "--to", "sft"], ExitCode.DATA, "the rows are preference pairs", "--data.columns.completion chosen")
    refuse(["--input", source, "--output", source, "--overwrite"], ExitCode.OUTPUT, "would replace one that is read")
    assert not (tmp_path / "new.jsonl").exists()
    assert convert.main([*argv, "--to", "sft", "--completion", "chosen"]) == 0


def test_the_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["openai-preference", "pairs"] for line in lines)


def test_several_columns_are_left_aside_as_errors_name_them(tmp_path: Path) -> None:
    rows = [{**ROW, "context": "It was built in 1900.", "passage": "It is a tower now."}] * 2
    argv = ["--input", jsonl(tmp_path, rows), "--output", str(tmp_path / "new.jsonl")]
    argv += ["--prompt", "question", "--chosen", "gpt4_response", "--rejected", "my_model_response"]
    refuse(argv, ExitCode.DATA, "--data.ignore_columns '[context, passage]'")
    assert convert.main([*argv, "--data.ignore_columns", "[context, passage]"]) == 0
