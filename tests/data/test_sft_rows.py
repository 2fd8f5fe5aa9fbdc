"""Demonstrations of every format, through files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

A, B = assistant("a"), assistant("b")
U, V = user("u"), user("v")
SYSTEM = {"role": "system", "content": "s"}
ROW = {"prompt": "p", "completion": "c"}
CHAT = {"messages": [user("w"), A]}
TASK = {"instruction": "i", "output": "o"}


@pytest.mark.parametrize(
    ("row", "other", "prompt", "completion"),
    [
        ({"prompt": " q ", "completion": " c\n"}, ROW, " q ", " c\n"),
        ({"prompt": [U], "completion": [A]}, {"prompt": [V], "completion": [B]}, (U,), (A,)),
        ({"prompt": [U], "completion": "a"}, {"prompt": [V], "completion": [B]}, (U,), (A,)),
        ({"prompt": "u", "completion": [A]}, {"prompt": [V], "completion": [B]}, (U,), (A,)),
        ({"messages": [U, A]}, CHAT, (U,), (A,)),
        ({"messages": [SYSTEM, U, A, V, B]}, CHAT, (SYSTEM, U), (A, V, B)),
        ({**TASK, "input": "x"}, TASK, "i\n\nx", "o"),
        ({**TASK, "input": ""}, {**TASK, "output": "x"}, "i", "o"),
        ({**TASK, "input": None}, {**TASK, "output": "x"}, "i", "o"),
        ({**TASK, "instruction": "", "input": "x"}, TASK, "x", "o"),
    ],
)
def test_formats(
    tmp_path: Path, row: dict[str, Any], other: dict[str, Any], prompt: object, completion: object
) -> None:
    examples, warnings = load_examples(SFTKind, jsonl(tmp_path, [row, other]))
    assert (examples[0].prompt, examples[0].completion) == (prompt, completion)
    assert warnings == []


def test_a_completion_that_repeats_the_prompt_is_read_once(tmp_path: Path) -> None:
    examples, warnings = load_examples(SFTKind, jsonl(tmp_path, [{"prompt": [U], "completion": [U, A]}] * 2))
    assert (examples[0].prompt, examples[0].completion) == ((U,), (A,))
    assert len(warnings) == 2


@pytest.mark.parametrize(
    ("good", "change", "what"),
    [
        (ROW, {"completion": ""}, "'completion' is empty"),
        (ROW, {"completion": " "}, "'completion' is only white space"),
        (ROW, {"completion": None}, "'completion' is null"),
        (ROW, {"prompt": 3}, "'prompt' is a number"),
        (ROW, {"completion": [A, U]}, "'completion' ends with a user message"),
        (CHAT, {"messages": [A, U]}, "'messages' ends with a user message"),
        (CHAT, {"messages": [U]}, "'messages' ends with a user message"),
        (CHAT, {"messages": []}, "'messages' is empty"),
        (CHAT, {"messages": "text"}, "'messages' is text, not a list of messages"),
        (TASK, {"output": [A]}, "'output' is a list, not text"),
        (TASK, {"instruction": [U]}, "'instruction' is a list, not text"),
        (TASK, {"input": 3}, "'input' is a number"),
        (ROW, {"tools": 3}, "tools is not a list"),
    ],
)
def test_bad_rows(tmp_path: Path, good: dict[str, Any], change: dict[str, Any], what: str) -> None:
    path = jsonl(tmp_path, [good, {**good, **change}, good])
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, what, f"{path}:2")


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "p", "chosen": "r", "rejected": "x"}, ["--data.columns.completion chosen"]),
        ({"prompt": "p", "answer_x": "r"}, ["'completion'", "--data.columns.completion answer_x"]),
        ({"completion": "p", "my_question": "r"}, ["'prompt'", "--data.columns.prompt my_question"]),
        ({"text": "p"}, ["'prompt', 'completion'", "the columns are text", "--data.columns.prompt NAME"]),
    ],
)
def test_other_columns(tmp_path: Path, row: dict[str, Any], parts: list[str]) -> None:
    path = jsonl(tmp_path, [row, row])
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, f"{path}:1", *parts)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response": "r"},
        {"question": "p", "completion": "r"},
        {"instruction": "p", "response": "r"},
        {"question": "p", "output": "r"},
        {"question": "p", "answer": "r"},
        {"질문": "p", "답변": "r"},
    ],
)
def test_columns_of_known_names_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    examples, _ = load_examples(SFTKind, jsonl(tmp_path, [row, row]))
    assert (examples[0].prompt, examples[0].completion) == ("p", "r")


@pytest.mark.parametrize("label", [True, False, 1, "good"])
def test_unpaired_rows_are_not_imitated(tmp_path: Path, label: object) -> None:
    path = jsonl(tmp_path, [{**ROW, "label": label}] * 2)
    refusal(
        lambda: load_examples(SFTKind, path),
        ExitCode.DATA,
        "'label' may select what is learned",
        "configs/kto.yaml",
        f"{path}:1",
    )


def test_a_label_that_is_a_kind_is_a_column_like_others(tmp_path: Path) -> None:
    _, warnings = load_examples(
        SFTKind, jsonl(tmp_path, [{**ROW, "label": "poem"}, {**ROW, "prompt": "q", "label": "prose"}])
    )
    assert warnings == ["columns that are not used: label"]


def test_notes(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        [ROW, ROW, {"prompt": "", "completion": "c"}, {"prompt": "x", "completion": '[{"role": 1}]'}],
    )
    _, warnings = load_examples(SFTKind, path)
    assert [warning.partition(":")[0] for warning in warnings] == [
        "rows with an empty prompt",
        "answers that look like messages in JSON, read as plain text",
        "repeated rows",
    ]
    refusal(lambda: load_examples(SFTKind, path, strict=True), ExitCode.DATA, f"{path}:2", f"{path}:3", f"{path}:4")


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"질문": "q", "답변": ""}, {"질문": "r", "답변": "b"}])
    columns = {"prompt": "질문", "completion": "답변"}
    refusal(lambda: load_examples(SFTKind, path, columns=columns), ExitCode.DATA, "'답변' is empty", f"{path}:1")
