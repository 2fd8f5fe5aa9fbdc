"""Ranked rows: order by place or by score, and every reason to refuse one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.datamodules import RankedDataModule
from dpo_lightning.data.kinds.duplicates import check_leak
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

ROW = {"prompt": "Name a colour.", "responses": ["Blue, like the sea.", "Blue.", "No."]}
OTHER = {"prompt": "Name an animal.", "responses": ["A heron.", "A chair."]}
A, B, C = (assistant(text) for text in "abc")
U, V = user("u"), user("v")


def first(folder: Path, row: dict[str, Any], other: dict[str, Any] = OTHER) -> Any:
    return load_examples(RankedKind, jsonl(folder, [row, other]))[0][0]


def test_the_order_of_a_row_is_the_ranking(tmp_path: Path) -> None:
    examples, warnings = load_examples(RankedKind, jsonl(tmp_path, [{**ROW, "weight": 0.5, "group": "g"}, OTHER]))
    assert [example.answers for example in examples] == [tuple(ROW["responses"]), tuple(OTHER["responses"])]
    assert [(example.prompt, example.weight, example.group) for example in examples] == [
        (ROW["prompt"], 0.5, "g"),
        (OTHER["prompt"], 1.0, ""),
    ]
    assert str(examples[1].origin).endswith("rows.jsonl:2")
    assert warnings == []


def test_scores_are_the_ranking_where_there_are_some(tmp_path: Path) -> None:
    row, other = {**ROW, "scores": [1, 7.5, "-3"]}, {**OTHER, "scores": [2, 1]}
    assert first(tmp_path, row, other).answers == ("Blue.", "Blue, like the sea.", "No.")
    assert first(tmp_path, {**ROW, "scores": None}).answers == tuple(ROW["responses"])


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": [U], "responses": [[A], [B]]}, (U,), ((A,), (B,))),
        ({"prompt": [U], "responses": ["a", "b"]}, (U,), ((A,), (B,))),
        ({"prompt": "u", "responses": [[A], [B], [A, V, C]]}, (U,), ((A,), (B,), (A, V, C))),
        ({"prompt": [U], "responses": [[U, A], [U, B]]}, (U,), ((A,), (B,))),
    ],
)
def test_conversations(tmp_path: Path, row: dict[str, Any], prompt: object, responses: object) -> None:
    example = first(tmp_path, row, {"prompt": [V], "responses": [[A], [B]]})
    assert (example.prompt, example.answers) == (prompt, responses)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"responses": "Blue."}, "'responses' is text, not a list of answers"),
        ({"responses": None}, "'responses' is null, not a list"),
        ({"responses": []}, "'responses' has 0 answers"),
        ({"responses": ["Blue."]}, "'responses' has 1 answer"),
        ({"responses": ["Blue.", ""]}, "'responses' 2 is empty"),
        ({"responses": ["Blue.", "Red.", " \n"]}, "'responses' 3 is only white space"),
        ({"responses": ["Blue.", 3]}, "'responses' 2 is a number"),
        ({"responses": [{"text": "a"}, {"text": "b"}]}, "'responses' 1 is an object"),
        ({"responses": ["Blue.", [B]]}, "'responses' 1 is text and 'responses' 2 is messages"),
        ({"responses": ["Blue.", "Red.", "Blue."]}, "'responses' contains an answer twice"),
        ({"responses": [[A], [B, U]]}, "'responses' 2 ends with a user message"),
        ({"responses": [[user(ROW["prompt"]), A], [B]]}, "only some answers begin with the prompt's messages"),
        ({"prompt": " "}, "'prompt' is only white space"),
        ({"scores": [1, 2]}, "'scores' is 2 numbers, and there are 3 answers"),
        ({"scores": 4}, "'scores' is a number, and there are 3 answers"),
        ({"scores": [1, "x", 2]}, "'scores' 2 is not a finite number"),
        ({"scores": [2, 1.0, 1]}, "'scores' ranks answers 2 and 3 the same (1)"),
        ({"weight": -1}, "'weight' is negative"),
        ({"tools": "no"}, "tools is text that is not JSON"),
        ({"prompt": [U]}, "the prompt is messages, but"),
    ],
)
def test_bad_rows_are_told_with_every_line(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    bad = {**ROW, **change}
    path = jsonl(tmp_path, [OTHER, bad, {**ROW, "prompt": "p"}, bad])
    refusal(lambda: load_examples(RankedKind, path), ExitCode.DATA, what, f"{path}:2", f"{path}:4")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pairs = jsonl(tmp_path, [{"prompt": "p", "completion": "a", "x": "b"}] * 2, "pairs.jsonl")
    refusal(lambda: load_examples(RankedKind, pairs), ExitCode.DATA, "the rows are SFT rows")
    neither = jsonl(tmp_path, [{"prompt": "p", "x": "b"}] * 2, "neither.jsonl")
    refusal(lambda: load_examples(RankedKind, neither), ExitCode.DATA, "no row has the column 'responses'")
    some = jsonl(tmp_path, [ROW, {"prompt": "p"}])
    refusal(lambda: load_examples(RankedKind, some), ExitCode.DATA, f"no column 'responses' at {some}:2")


def test_columns_of_another_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"q": row["prompt"], "texts": row["responses"]} for row in (ROW, OTHER)])
    columns = {"prompt": "q", "responses": "texts"}
    assert load_examples(RankedKind, path, columns=columns)[0][0].answers == tuple(ROW["responses"])


def test_odd_rows_are_noted_and_strictly_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [OTHER, {**ROW, "responses": ["Blue.", "Red.", "Blue. "]}, OTHER, {**ROW, "prompt": ""}])
    examples, warnings = load_examples(RankedKind, path)
    assert len(examples) == 4
    parts = ("differ only in outer white space: 1", "repeated rows: 1", "empty prompt: 1")
    assert all(any(part in line for line in warnings) for part in parts), warnings
    refusal(lambda: load_examples(RankedKind, path, strict=True), ExitCode.DATA, f"{path}:2", f"{path}:3", f"{path}:4")


def test_answers_that_two_lists_rank_both_ways_round(tmp_path: Path) -> None:
    """Also where the lists have other answers beside them."""
    path = jsonl(tmp_path, [ROW, OTHER, {**ROW, "responses": ["Red.", "No.", "Blue."]}])
    what = f"two answers are ranked the other way round than in {path}:1 at {path}:3"
    refusal(lambda: load_examples(RankedKind, path), ExitCode.DATA, what)
    examples, warnings = load_examples(RankedKind, path, allow=["contradictions"])
    assert len(examples) == 3
    assert "rows that contradict another: 1" in warnings[0]
    agreeing = jsonl(tmp_path, [ROW, {**ROW, "responses": ["Red.", "Blue.", "No."]}])
    assert load_examples(RankedKind, agreeing)[1] == []


def test_a_prompt_in_both_sets_is_a_leak(tmp_path: Path) -> None:
    train, held_out = (
        load_examples(RankedKind, jsonl(tmp_path, rows, name))[0]
        for name, rows in (("t.jsonl", [ROW, OTHER]), ("e.jsonl", [OTHER, {**ROW, "prompt": "p"}]))
    )
    refusal(
        lambda: check_leak(train, held_out, RankedKind.check),
        ExitCode.DATA,
        "1 of 2 held-out rows",
        "e.jsonl:1",
        "t.jsonl:2",
    )
    turned = load_examples(
        RankedKind, jsonl(tmp_path, [{**OTHER, "responses": OTHER["responses"][::-1]}, ROW], "r.jsonl")
    )[0]
    refusal(
        lambda: check_leak(train, turned, RankedKind.check, allow=["leak"]),
        ExitCode.DATA,
        "the other way round",
        "r.jsonl:1",
    )


def test_the_data_module_reads_them(tmp_path: Path) -> None:
    data = RankedDataModule(train=jsonl(tmp_path, [ROW, OTHER]), batch_size=2)
    data.read_rows(["train"])
    assert [len(example.answers) for example in data.examples["train"]] == [3, 2]


def test_pairs_without_a_prompt_are_named_as_such(tmp_path: Path) -> None:
    """And not as lists that lack a column: those are what the pairs would become."""
    path = jsonl(tmp_path, [{"chosen": "In Peru, yes.", "rejected": "In Peru, no."}] * 2)
    said = refusal(lambda: load_examples(RankedKind, path), ExitCode.DATA, "the pair has no prompt", "`prompt`")
    assert "responses" not in said
