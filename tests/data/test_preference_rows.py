"""Preference rows of every format, through files."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user

from dpo_lightning.data.kinds.pairs import PairExample, PairKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

A, B = assistant("a"), assistant("b")
U, V = user("u"), user("v")
SYSTEM = {"role": "system", "content": "s"}
CHAT = {"prompt": [user("w")], "chosen": [A], "rejected": [B]}
TOOL = {"name": "f", "parameters": {}}


def first(folder: Path, row: dict[str, Any], other: dict[str, Any]) -> tuple[PairExample, list[str]]:
    examples, warnings = load_examples(PairKind, jsonl(folder, [row, other]))
    return examples[0], warnings


@pytest.mark.parametrize(
    ("columns", "weight", "margin"),
    [({}, 1.0, None), ({"weight": 0, "margin": 0}, 0.0, 0.0), ({"weight": "2.5", "margin": 1.5}, 2.5, 1.5)],
)
def test_weights_and_margins(tmp_path: Path, columns: dict[str, Any], weight: float, margin: float | None) -> None:
    """A weight of 0 is a weight; what CSV writes as text is a number; a margin may have any sign."""
    example, warnings = first(tmp_path, PAIR | columns, OTHER | columns)
    assert (example.weight, example.margin) == (weight, margin)
    assert not warnings


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": [U], "chosen": [A], "rejected": [B]}, (U,), (A,), (B,)),
        ({"prompt": [SYSTEM, U, A, V], "chosen": [A], "rejected": [B]}, (SYSTEM, U, A, V), (A,), (B,)),
        ({"prompt": [U], "chosen": "a", "rejected": "b"}, (U,), (A,), (B,)),
        ({"prompt": "u", "chosen": [A], "rejected": [B]}, (U,), (A,), (B,)),
        ({"prompt": [U], "chosen": [A, V, A], "rejected": [B]}, (U,), (A, V, A), (B,)),
    ],
)
def test_conversations(tmp_path: Path, row: dict[str, Any], prompt: object, chosen: object, rejected: object) -> None:
    example, warnings = first(tmp_path, row, CHAT)
    assert (example.prompt, example.chosen, example.rejected) == (prompt, chosen, rejected)
    assert warnings == []


@pytest.mark.parametrize("prompt", ["u", [U]])
def test_answers_that_repeat_the_prompt_are_read_once(tmp_path: Path, prompt: Any) -> None:
    example, warnings = first(tmp_path, {"prompt": prompt, "chosen": [U, A], "rejected": [U, B]}, CHAT)
    assert (example.prompt, example.chosen, example.rejected) == ((U,), (A,), (B,))
    assert len(warnings) == 1
    assert "begin with the prompt's messages" in warnings[0]


def test_strings_are_not_touched(tmp_path: Path) -> None:
    row = {"prompt": " Why? \n", "chosen": " Because.\n\n", "rejected": "\tNo "}
    example, _ = first(tmp_path, row, PAIR)
    assert (example.prompt, example.chosen, example.rejected) == tuple(row.values())


def test_hangul_is_composed(tmp_path: Path) -> None:
    text = "하늘은 왜 파란가요?"
    row = {"prompt": unicodedata.normalize("NFD", text), "chosen": "산란", "rejected": "바다"}
    assert first(tmp_path, row, PAIR)[0].prompt == text


def test_implicit_prompts(tmp_path: Path) -> None:
    rows = [{"chosen": [U, A], "rejected": [U, B]}, {"chosen": [V, A], "rejected": [V, B]}]
    example, _ = first(tmp_path, *rows)
    assert (example.prompt, example.chosen, example.rejected) == ((U,), (A,), (B,))


def test_tools_and_groups(tmp_path: Path) -> None:
    row = {**CHAT, "prompt": [U], "tools": json.dumps([TOOL]), "group": "code"}
    example, _ = first(tmp_path, row, {**CHAT, "tools": [TOOL], "group": None})
    assert (example.tools, example.group) == ((TOOL,), "code")


REFUSED = [
    ({"chosen": None}, "'chosen' is null"),
    ({"chosen": 3}, "'chosen' is a number"),
    ({"prompt": True}, "'prompt' is a boolean"),
    ({"prompt": None}, "'prompt' is null"),
    ({"rejected": ["x"]}, "'rejected' message 1 is text"),
    ({"rejected": {}}, "'rejected' is an object"),
    ({"chosen": ""}, "'chosen' is empty"),
    ({"rejected": ""}, "'rejected' is empty"),
    ({"rejected": []}, "'rejected' is empty"),
    ({"chosen": " \n\t"}, "'chosen' is only white space"),
    ({"chosen": "\u3000"}, "'chosen' is only white space"),
    ({"prompt": " "}, "'prompt' is only white space"),
    ({"rejected": PAIR["chosen"]}, "'chosen' and 'rejected' are equal"),
    ({"chosen": [A], "rejected": [A]}, "'chosen' and 'rejected' are equal"),
    ({"rejected": [B]}, "'chosen' is text and 'rejected' is messages"),
    ({"chosen": [A]}, "'chosen' is messages and 'rejected' is text"),
    ({"chosen": [A, U], "rejected": [B]}, "'chosen' ends with a user message"),
    ({"chosen": [{"role": "wizard", "content": "a"}], "rejected": [B]}, "unknown role"),
    ({"chosen": [{"role": "assistant"}], "rejected": [B]}, "has no content"),
    ({"chosen": [{"role": "assistant", "content": [{}]}], "rejected": [B]}, "a content part that is not text"),
    ({"chosen": [V, A], "rejected": [V, B]}, "begins with a user message that is not the prompt's"),
    (
        {"chosen": [user(PAIR["prompt"]), A], "rejected": [B]},
        "only one answer begins with the prompt's messages",
    ),
    ({"tools": "no"}, "tools is text that is not JSON"),
    ({"group": [1]}, "group is a list"),
    ({"weight": -0.5}, "'weight' is negative"),
    ({"weight": 1e308}, "'weight' is too large for float32"),
    ({"margin": "-3.5e38"}, "'margin' is too large for float32"),
    ({"weight": None}, "'weight' is not a finite number"),
    ({"weight": True}, "'weight' is not a finite number"),
    ({"margin": "much"}, "'margin' is not a finite number"),
    ({"margin": "inf"}, "'margin' is not a finite number"),
    ({"margin": [1]}, "'margin' is not a finite number"),
    ({"prompt": [U]}, "the prompt is messages, but"),
]


@pytest.mark.parametrize(("change", "what"), REFUSED)
def test_bad_rows_are_told_with_every_line(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    bad = {**PAIR, **change}
    path = jsonl(tmp_path, [OTHER, bad, {**PAIR, "prompt": "p"}, bad])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, what, f"{path}:2", f"{path}:4")


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_a_key_that_some_rows_lack(tmp_path: Path, name: str) -> None:
    bad = {key: value for key, value in PAIR.items() if key != name}
    path = jsonl(tmp_path, [OTHER, bad, bad])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"no column '{name}' at {path}:2", f"{path}:3")


def test_all_faults_of_a_row_are_told_at_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [OTHER, {"prompt": 1, "chosen": "", "rejected": None}])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "'prompt' is", "'chosen' is", "'rejected' is")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"prompt": ""}, "rows with an empty prompt: 1"),
        ({"rejected": PAIR["chosen"] + "\n"}, "differ only in outer white space"),
        ({"chosen": "é", "rejected": "e\u0301"}, "differ only in outer white space or Unicode form"),
        ({"chosen": '[{"role": "assistant", "content": "a"}]'}, "look like messages in JSON"),
    ],
)
def test_odd_rows_are_noted_and_strictly_refused(tmp_path: Path, changes: dict[str, str], what: str) -> None:
    path = jsonl(tmp_path, [OTHER, {**PAIR, **changes}])
    examples, warnings = load_examples(PairKind, path)
    assert len(examples) == 2
    assert len(warnings) == 1
    assert what in warnings[0]
    assert f"({path}:2)" in warnings[0]
    refusal(lambda: load_examples(PairKind, path, strict=True), ExitCode.DATA, what.partition(":")[0], f"{path}:2")


def test_equal_decomposed_texts_are_equal(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [OTHER, {**PAIR, "chosen": "e\u0301", "rejected": "e\u0301"}])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "are equal", f"{path}:2")


@pytest.mark.parametrize("pair", [("abc", "abc"), ("abc", "abc def")])
def test_implicit_prompts_that_cannot_be_told(tmp_path: Path, pair: tuple[str, str]) -> None:
    rows = [{"chosen": "a b", "rejected": "a c"}, dict(zip(("chosen", "rejected"), pair, strict=True))]
    path = jsonl(tmp_path, rows)
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"{path}:2")


def test_margins_below_0_are_noted(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{**PAIR, "margin": -1.5}, {**OTHER, "margin": 0}])
    noted = f"pairs with a margin below 0, as if the rejected answer were the better one: 1 ({path}:1)"
    assert load_examples(PairKind, path)[1] == [noted]
    refusal(lambda: load_examples(PairKind, path, strict=True), ExitCode.DATA, "margin below 0", "exchange the answers")
