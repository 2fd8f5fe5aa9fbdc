"""Other column names: the mapping, and its proposal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, jsonl, refusal

from dpo_lightning import PreferenceDataModule
from dpo_lightning.data.examples import Origin
from dpo_lightning.data.kinds.columns import (
    check_same_columns,
    count_columns,
    find_look_alike,
    missing_columns,
    rename,
)
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.unread_columns import describe_unused
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.readers.sources import Row
from dpo_lightning.errors import ExitCode

KNOWN = ("prompt", "chosen", "rejected")


def row(values: dict[str, Any], file: str = "f", line: int = 1) -> Row:
    return Row(Origin(file, line), values, frozenset(values))


def test_columns_are_mapped_and_ours_of_that_name_set_aside() -> None:
    mapped = rename([row({"question": "q", "prompt": "p", "x": 1})], {"prompt": "question"}, KNOWN)
    assert mapped[0].values == {"prompt": "q", "x": 1}
    assert describe_unused(mapped, count_columns(mapped), KNOWN) == ["columns that are not used: x, prompt"]


def test_a_file_without_the_named_column_keeps_ours() -> None:
    """One mapping is for training and held-out files; within a file, a row that lacks the column is not guessed."""
    rows = [row({"question": "q"}), row({"prompt": "b"}, line=2), row({"prompt": "p", "chosen": "c"}, "g")]
    mapped = rename(rows, {"prompt": "question"}, KNOWN)
    assert [one.values for one in mapped] == [{"prompt": "q"}, {}, {"prompt": "p", "chosen": "c"}]
    assert describe_unused(mapped, count_columns(mapped), KNOWN) == [
        "g has no column 'question': its 'prompt' is read instead",
        "columns that are not used: prompt",
    ]


def test_columns_can_be_swapped() -> None:
    swap = {"chosen": "rejected", "rejected": "chosen"}
    assert rename([row({"chosen": 1, "rejected": 2})], swap, KNOWN)[0].values == {"rejected": 1, "chosen": 2}


@pytest.mark.parametrize("columns", [{"promt": "question"}, {"prompt": "a", "chosen": "a"}])
def test_mappings_that_make_no_sense(columns: dict[str, str]) -> None:
    refusal(lambda: rename([row({"a": 1})], columns, KNOWN), ExitCode.CONFIG, "data.columns")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["question", "response_chosen", "response_rejected"],
            ["question", "response_chosen", "response_rejected"],
        ),
        (["instruction", "preferred", "dispreferred"], ["instruction", "preferred", "dispreferred"]),
        (["dispreferred", "preferred", "query"], ["query", "preferred", "dispreferred"]),
        (["Prompt", "Chosen", "Rejected"], ["Prompt", "Chosen", "Rejected"]),
        (["input", "gpt4_response", "llama_response"], ["input", "gpt4_response", "llama_response"]),
        (["prompt_id", "choosen", "answer_rejected"], ["", "choosen", "answer_rejected"]),
        (["질문", "winner", "loser"], ["질문", "winner", "loser"]),
        (["a", "b"], ["", "", ""]),
    ],
)
def test_look_alikes(names: list[str], expected: list[str]) -> None:
    assert [find_look_alike(ours, names, KNOWN) for ours in KNOWN] == expected


def test_the_proposal_is_a_flag() -> None:
    def call() -> None:
        raise missing_columns(["prompt", "chosen"], [row({"my question": "q", "zzz": 2})], None)

    fix = "--data.columns.prompt 'my question' --data.columns.chosen NAME"
    refusal(call, ExitCode.DATA, "no row has the columns 'prompt', 'chosen'", "my question, zzz", "at f:1", fix)


def test_unknown_columns_are_named_once() -> None:
    rows = [
        row({"prompt": 1, "score": 2, "language": "ko", "meta_x": 1}),
        row({"score": 3, "id": 4, "source": 5}),
    ]
    assert describe_unused(rows, count_columns(rows), KNOWN) == ["columns that are not used: score"]
    assert describe_unused(rows, count_columns(rows), (*KNOWN, "score")) == []


@pytest.mark.parametrize("name", ["loss_mask", "train", "weights", "sample_weight", "Loss_Weight"])
def test_columns_that_select_what_is_learned_are_refused(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path, [{**PAIR, name: 1, "score": 1}, {**OTHER, name: 0}])
    parts = f"'{name}' may select what is learned, and is not read (2 rows)", f"--data.columns.weight {name}"
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, *parts)
    assert [pair.weight for pair in load_examples(PairKind, path, columns={"weight": name})[0]] == [1, 0]
    _, warnings = load_examples(PairKind, path, ignore_columns=[name])
    assert warnings == ["columns that are not used: score"]


def test_two_files_of_other_columns() -> None:
    rows = [row({"prompt": 1, "chosen": 2}), row({"chosen": 2}, "g", 7)]
    refusal(
        lambda: check_same_columns(rows, KNOWN),
        ExitCode.DATA,
        "the columns differ from those of f at g:7",
        "chosen, prompt",
    )
    check_same_columns([row({"prompt": 1, "x": 2}), row({"prompt": 1}, "g")], KNOWN)


def test_columns_of_the_training_rows_do_not_hide_those_of_held_out_ones(tmp_path: Path) -> None:
    """The recipe's own held-out file has our names; in the training file a misspelt name stays an error."""
    renamed = [{"question": row["prompt"], **{k: row[k] for k in ("chosen", "rejected")}} for row in (PAIR, OTHER)]
    train, other = jsonl(tmp_path, renamed, "train.jsonl"), [PAIR | {"prompt": "Name a bird."}, OTHER | {"prompt": "?"}]
    held_out = jsonl(tmp_path, other, "eval.jsonl")
    data = PreferenceDataModule(train, held_out, columns={"prompt": "question"}, batch_size=2)
    data.read_rows(("train", "eval"))
    assert [example.prompt for example in data.examples["eval"]] == ["Name a bird.", "?"]
    assert [example.prompt for example in data.examples["train"]] == [PAIR["prompt"], OTHER["prompt"]]
    misspelt = PreferenceDataModule(jsonl(tmp_path, other, "more.jsonl"), columns={"prompt": "qestion"})
    refusal(lambda: misspelt.read_rows(("train",)), ExitCode.DATA, "'qestion'", "more.jsonl:1")


def test_answers_that_changed_places_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{**PAIR, "swapped": False}, {**OTHER, "swapped": True}])
    parts = "'swapped' may select what is learned, and is not read", f"{path}:2", "exchange the answers"
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, *parts)
    never = jsonl(tmp_path, [{**PAIR, "swapped": False}, {**OTHER, "swapped": False}], "never.jsonl")
    assert load_examples(PairKind, never)[1] == ["columns that are not used: swapped"]
