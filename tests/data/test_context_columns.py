"""Columns beside the prompt that belong to it, in every format; and texts that would be lost."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

READERS = {
    "sft": (SFTKind, {"completion": "Blue."}, {"completion": "A heron."}),
    "pairs": (PairKind, {"chosen": "Blue.", "rejected": "No."}, {"chosen": "A heron.", "rejected": "No."}),
    "lists": (RankedKind, {"responses": ["Blue.", "No."]}, {"responses": ["A heron.", "No."]}),
    "unpaired": (UnpairedKind, {"completion": "Blue.", "label": 1}, {"completion": "No.", "label": 0}),
    "split": (UnpairedKind, {"chosen": "Blue.", "rejected": "No."}, {"chosen": "A heron.", "rejected": "Go."}),
}
KINDS = list(READERS)
S, Q = {"role": "system", "content": "Be brief."}, user("Name a colour.")
EARLIER = [["Hello?", "Hi."], ["Still there?", "Yes."]]
TURNS = [user("Hello?"), assistant("Hi."), user("Still there?"), assistant("Yes.")]


def read(folder: Path, kind: str, more: dict[str, Any], other: dict[str, Any] | None = None, **options: Any) -> Any:
    """Two rows, the first with `more` columns: the examples, and the warnings."""
    reader, first, second = READERS[kind]
    rows = [{"prompt": Q["content"], **first, **more}, {"prompt": "Name an animal.", **second, **(other or {})}]
    return load_examples(reader, jsonl(folder, rows), **options)


def answers(example: Any) -> list[Any]:
    return list(example.answers)


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_system_column_is_a_system_message(tmp_path: Path, kind: str, name: str) -> None:
    """Rows without one are messages then as well, so that all are of a kind."""
    examples, warnings = read(tmp_path, kind, {name: "Be brief."}, {name: " "})
    assert examples[0].prompt == (S, Q)
    assert examples[-1].prompt == (user("Name an animal."),)
    assert answers(examples[0])[0] == (assistant("Blue."),)
    assert warnings == ["rows whose `system` is read as a system message: 1"]


@pytest.mark.parametrize("value", [EARLIER, json.dumps(EARLIER), TURNS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_history_is_earlier_turns(tmp_path: Path, kind: str, value: Any) -> None:
    examples, warnings = read(tmp_path, kind, {"history": value, "system": "Be brief."}, {"history": []})
    assert examples[0].prompt == (S, *TURNS, Q)
    assert examples[-1].prompt == (user("Name an animal."),)
    assert "rows whose `history` is read as earlier turns, which are not learned: 1" in warnings


def test_a_history_may_begin_with_a_greeting(tmp_path: Path) -> None:
    examples, _ = read(tmp_path, "sft", {"history": [["", "Welcome."], ["Hello?", "Hi."]]})
    assert examples[0].prompt == (assistant("Welcome."), *TURNS[:2], Q)


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_is_joined_to_the_prompt(tmp_path: Path, kind: str) -> None:
    examples, warnings = read(tmp_path, kind, {"input": "Of the sea."}, {"input": ""})
    assert examples[0].prompt == "Name a colour.\n\nOf the sea."
    assert examples[-1].prompt == "Name an animal."
    assert warnings == ["rows whose `input` is joined to the prompt: 1"]
    examples, _ = read(tmp_path, kind, {"input": "Of the sea.", "system": "Be brief."})
    assert examples[0].prompt == (S, user("Name a colour.\n\nOf the sea."))


def test_an_input_that_stands_in_the_prompt_is_not_joined_again(tmp_path: Path) -> None:
    examples, warnings = read(tmp_path, "pairs", {"input": "colour"}, {"input": "an"})
    assert [example.prompt for example in examples] == ["Name a colour.", "Name an animal."]
    assert warnings == ["rows whose `input` is already part of the prompt and is not joined to it: 2"]
    examples, _ = read(tmp_path, "pairs", {"input": "our"})
    assert examples[0].prompt == "Name a colour.\n\nour"


def test_the_instruction_form_of_pairs(tmp_path: Path) -> None:
    row = {
        "instruction": "Translate.",
        "input": "Good day",
        "chosen": "Bonjour",
        "rejected": "No",
        "system": "Be brief.",
    }
    path = jsonl(tmp_path, [row, {**row, "input": "Good night"}])
    examples, _ = load_examples(PairKind, path)
    assert load_examples(PairKind, path, columns={"prompt": "instruction"})[0] == examples
    assert [example.prompt for example in examples] == [
        (S, user("Translate.\n\nGood day")),
        (S, user("Translate.\n\nGood night")),
    ]


@pytest.mark.parametrize("column", ["input", "context"])
def test_the_instruction_form_of_demonstrations(tmp_path: Path, column: str) -> None:
    row = {"instruction": "When?", column: "Built in 1900.", "output": "In 1900.", "system": "Be brief."}
    examples, _ = load_examples(SFTKind, jsonl(tmp_path, [{**row, "history": EARLIER}, {**row, "output": "x"}]))
    assert examples[0].prompt == (S, *TURNS, user("When?\n\nBuilt in 1900."))
    assert examples[0].completion == (assistant("In 1900."),)


def test_conversations_get_a_system_message(tmp_path: Path) -> None:
    rows = [{"messages": [Q, assistant("Blue.")], "system": "Be brief."}, {"messages": [S, Q, assistant("Red.")]}]
    examples, _ = load_examples(SFTKind, jsonl(tmp_path, [*rows, {**rows[1], "system": "Be brief. "}]))
    assert [example.prompt for example in examples] == [(S, Q)] * 3
    pairs = [
        {"chosen": [Q, assistant("Blue.")], "rejected": [Q, assistant("No.")], "system": "Be brief."},
        {"chosen": [S, Q, assistant("Red.")], "rejected": [S, Q, assistant("No.")]},
    ]
    assert [example.prompt for example in load_examples(PairKind, jsonl(tmp_path, pairs))[0]] == [(S, Q)] * 2


@pytest.mark.parametrize("turns", [[Q], [S, Q]])
def test_answers_that_repeat_the_prompt_beside_a_system_column(tmp_path: Path, turns: list[Any]) -> None:
    more = {"system": "Be brief.", "chosen": [*turns, assistant("Blue.")], "rejected": [*turns, assistant("No.")]}
    example = read(tmp_path, "pairs", more)[0][0]
    assert (example.prompt, example.chosen, example.rejected) == ((S, Q), (assistant("Blue."),), (assistant("No."),))


BAD = [
    ({"system": 3}, "'system' is a number, not text"),
    ({"system": ["x"]}, "'system' is a list, not text"),
    ({"system": "Be brief.", "system_prompt": "Be long."}, "'system' and 'system_prompt' differ"),
    ({"system": "Be long.", "prompt": [S, Q]}, "'system' differs from the conversation's own system message"),
    (
        {"system": "Be long.", "prompt": [{"role": "developer", "content": "Be brief."}, Q]},
        "differs from the conversation's own developer message",
    ),
    ({"system": "Be long.", "history": [S, *TURNS]}, "'system' differs from the conversation's own system message"),
    ({"history": EARLIER, "prompt": [Q]}, "the row has a 'history' and a conversation"),
    ({"history": {"a": 1}}, "'history' is an object, not a list of earlier turns"),
    ({"history": ["Hello?", "Hi."]}, "'history' 1 is not a pair of question and answer"),
    ({"history": [["Hello?"]]}, "'history' 1 is not a pair"),
    ({"history": [["Hello?", ""]]}, "'history' message 2 has no text as content"),
    ({"history": "Hello?"}, "'history' is text that is not JSON"),
    ({"input": 3}, "'input' is a number, not text"),
    ({"input": "Of the sea.", "prompt": [Q]}, "the row has an 'input' and a prompt of messages"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("more", "what"), BAD)
def test_columns_that_conflict_or_are_of_another_kind(tmp_path: Path, kind: str, more: Any, what: str) -> None:
    refusal(lambda: read(tmp_path, kind, {}, more), ExitCode.DATA, what, "rows.jsonl:2")


def test_a_conversation_with_a_history_of_its_own(tmp_path: Path) -> None:
    rows = [{"messages": [Q, assistant("Blue.")]}] * 2
    path = jsonl(tmp_path, [rows[0], {**rows[1], "history": EARLIER}])
    refusal(
        lambda: load_examples(SFTKind, path), ExitCode.DATA, "the row has a 'history' and a conversation", f"{path}:2"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("context", "The sea is blue.", "input"),
        ("passage", ["The sea is blue."], "input"),
        ("chat_history", "Hello?", "history"),
        ("system_text", "Be brief.", "system"),
        ("instruction", "Answer in one word.", "prompt"),
        ("본문", "바다는 파랗다.", "input"),
    ],
)
def test_text_that_a_question_may_need_is_refused(tmp_path: Path, kind: str, name: str, value: Any, ours: str) -> None:
    """The flag that is proposed reads it, where one can; the other leaves it aside."""
    parts = [f"'{name}' has text that is not read", "rows.jsonl:1", f"--data.ignore_columns {shlex.quote(name)}"]
    way = f"--data.columns.{ours} {shlex.quote(name)}" if ours != "prompt" else "write it into the prompt"
    refusal(lambda: read(tmp_path, kind, {name: value, "score": 1}), ExitCode.DATA, *parts, way)
    examples, warnings = read(tmp_path, kind, {name: value, "score": 1}, ignore_columns=[name])
    assert examples[0].prompt == "Name a colour."
    assert warnings == ["columns that are not used: score"]
    if ours != "prompt" and isinstance(value, str) and ours != "history":
        examples, warnings = read(tmp_path, kind, {name: value}, {name: ""}, columns={ours: name})
        assert not any(f"'{name}'" in warning for warning in warnings)
        assert value in str(examples[0].prompt)


def test_text_that_is_read_elsewhere_is_no_loss(tmp_path: Path) -> None:
    """Such as the question that a conversation begins with, and what is no text."""
    _, warnings = read(tmp_path, "pairs", {"question": "Name a colour.", "context_id": "x", "input_ids": [1, 2]})
    assert warnings == ["columns that are not used: question, context_id, input_ids"]


def test_a_system_prompt_is_not_the_prompt(tmp_path: Path) -> None:
    row = {"system_prompt": "Be brief.", "question": "q", "chosen": "a", "rejected": "b"}
    path = jsonl(tmp_path, [row, {**row, "question": "r"}])
    assert load_examples(PairKind, path)[0][0].prompt == ({"role": "system", "content": "Be brief."}, user("q"))


def test_a_question_named_input_is_not_passed_over_for_an_implicit_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"input": "q", "chosen": "a", "rejected": "b"}] * 2)
    assert load_examples(PairKind, path)[0][0].prompt == "q"
