"""`convert_rows`: what is written is read back as the same examples, and what is left out is counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user, written

from dpo_lightning.data.convert import convert_rows, format_jsonl
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.load import KINDS, ReadOptions, load_examples
from dpo_lightning.errors import ExitCode

Q, A, B = user("Why is the sky blue?"), assistant("Light scatters."), assistant("It is painted.")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SETS: dict[str, list[dict[str, Any]]] = {
    "pairs": [
        {"prompt": "p", "chosen": " a\n", "rejected": "b", "margin": 2, "weight": 0.5, "group": "code"},
        {"prompt": "", "chosen": "네", "rejected": "아니요", "margin": 0},
    ],
    "pairs without a prompt": [
        {"chosen": "Q: Is it big?\nA: Yes, it is.", "rejected": "Q: Is it big?\nA: Yes, or no."},
        {"chosen": "Q: x\nA: x", "rejected": "Q: x\nA: y"},
    ],
    "pairs of messages": [
        {"prompt": [Q], "chosen": [A], "rejected": [B], "tools": [TOOL]},
        {"prompt": [Q, A, user("And at night?")], "chosen": [A], "rejected": [B]},
    ],
    "pairs with context": [
        {"prompt": "p", "input": "i", "system": "s", "history": [["a", "b"]], "chosen": "c", "rejected": "d"},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
    ],
    "ranked": [
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 3, 2]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]},
    ],
    "unpaired": [{"prompt": "p", "completion": "a", "label": 1}, {"prompt": "p", "completion": "b", "label": 0}],
    "sft": [{"prompt": "p", "completion": "a"}, {"prompt": "q", "completion": "b", "weight": 2}],
    "sft of messages": [
        {"messages": [Q, A, user("Really?"), {**B, "train": False}, user("?"), A]},
        {"messages": [{"role": "system", "content": "s"}, Q, {**A, "train": False}, user("?"), B]},
    ],
}


def plain(examples: list[Any]) -> list[Any]:
    """The examples without their places."""
    return [dataclasses.replace(example, origin=Origin("", 0)) for example in examples]


@pytest.mark.parametrize("name", SETS)
def test_the_new_file_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path, SETS[name])
    kind = KINDS[name.split()[0]]  # type: ignore[index]
    result = convert_rows(path)
    new = written(tmp_path, format_jsonl(result.rows), "new.jsonl")
    assert plain(load_examples(kind, new)[0]) == plain(load_examples(kind, path)[0])
    assert (result.left_out, result.kind) == ([], name.split()[0])
    again = convert_rows(new).rows
    assert [{**row, "meta": 0} for row in again] == [{**row, "meta": 0} for row in result.rows]


def test_what_nothing_reads_is_kept_in_meta(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, [{"prompt": "p", "chosen": "a", "rejected": f"b{i}", "score": i, "meta": {"k": 1}} for i in (1, 2)]
    )
    assert convert_rows(path).rows[1]["meta"] == {"k": 1, "score": 2, "origin": f"{path}:2"}


def test_rows_that_cannot_be_used_are_left_out_with_the_reasons(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "chosen": ""}, {**good, "rejected": None}, {**good, "chosen": "b"}, {**good, "chosen": ""}]
    path = jsonl(tmp_path, rows)
    result = convert_rows(path)
    assert len(result.rows) == 1
    assert [row["origin"] for row in result.left_out] == [f"{path}:{line}" for line in (2, 3, 4, 5)]
    assert result.left_out[0] == {"origin": f"{path}:2", "reasons": ["'chosen' is empty"], "row": rows[1]}
    assert result.reasons["'chosen' is empty"] == 2


def test_rows_that_need_pictures_are_left_out(tmp_path: Path) -> None:
    rows = [{**OTHER, "image": "a.png"}, PAIR, {**OTHER, "image": None}]
    result = convert_rows(jsonl(tmp_path, rows))
    assert [row["prompt"] for row in result.rows] == [PAIR["prompt"], OTHER["prompt"]]
    assert list(result.reasons.values()) == [1]
    assert "need pictures" in next(iter(result.reasons))


def test_more_bad_rows_than_fit_would_read(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    result = convert_rows(jsonl(tmp_path, [good, *[{**good, "chosen": ""}] * 1500]))
    assert (len(result.rows), len(result.left_out)) == (1, 1500)


def test_pairs_become_lists_and_lists_of_two_pairs(tmp_path: Path) -> None:
    path = jsonl(tmp_path, SETS["pairs"])
    ranked = convert_rows(path, kind="ranked")
    assert [row["responses"] for row in ranked.rows] == [[" a\n", "b"], ["네", "아니요"]]
    lists = jsonl(tmp_path, SETS["ranked"], "lists.jsonl")
    pairs = convert_rows(lists, kind="pairs")
    assert [(row["chosen"], row["rejected"]) for row in pairs.rows] == [("a", "b")]
    assert pairs.left_out[0]["reasons"] == ["the row has 3 answers, and a pair has two"]


def test_both_answers_of_a_pair_become_unpaired_rows(tmp_path: Path) -> None:
    rows = convert_rows(jsonl(tmp_path, SETS["pairs"]), kind="unpaired").rows
    assert [(row["completion"], row["label"]) for row in rows[:2]] == [(" a\n", True), ("b", False)]


def test_text_that_would_be_lost_stops_the_conversion(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "context": "The sea is blue.", "chosen": "a", "rejected": f"b{i}"} for i in "12"]
    path = jsonl(tmp_path, rows)
    refusal(lambda: convert_rows(path), ExitCode.DATA, "'context' has text that is not read", f"{path}:1")
    assert (
        convert_rows(path, options=ReadOptions(columns={"input": "context"})).rows[0]["prompt"]
        == "p\n\nThe sea is blue."
    )
    assert convert_rows(path, options=ReadOptions(ignore_columns=["context"])).rows[0]["prompt"] == "p"


def test_rows_of_no_format(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"a": "x", "b": "y"}] * 2)
    refusal(lambda: convert_rows(path), ExitCode.DATA, "no format has these columns: a, b", f"{path}:1")
    columns = {"prompt": "a", "completion": "b"}
    assert (
        json.loads(format_jsonl(convert_rows(path, options=ReadOptions(columns=columns)).rows[:1]))["completion"] == "y"
    )
