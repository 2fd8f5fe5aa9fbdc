"""Ranked lists without scores: columns that may order the answers, and rows of which only some have scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.format_rows import load
from support.format_texts import BAD, GOOD, MIDDLE, Q2, Q
from support.row_files import jsonl, refusal

from dpo_lightning.data.convert import convert_rows
from dpo_lightning.errors import ExitCode


def rows_of(column: str, value: Any, answers: list[str]) -> list[dict[str, Any]]:
    """Two lists of the same answers with a column beside each."""
    return [{"prompt": question, "responses": answers, column: value} for question in (Q, Q2)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("best", 2),
        ("best_idx", 2),
        ("winner", "2"),
        ("label", 2),
        ("preferred_model", "gpt"),
        ("labels", [0, 0, 1]),
        ("quality", [3, 1, 5]),
        ("overall_scores", [3, 1, 5]),
        ("votes", [3, 1, 5]),
        ("chosen", GOOD),
    ],
)
def test_a_column_that_may_order_the_answers_is_refused(column: str, value: Any, tmp_path: Path) -> None:
    rows = rows_of(column, value, [MIDDLE, BAD, GOOD])
    refusal(lambda: load(tmp_path, rows, "ranked"), ExitCode.DATA, f"'{column}' may say which answer is best")
    examples, _ = load(tmp_path, rows, "ranked", ignore_columns=[column])
    assert examples[0].answers == (MIDDLE, BAD, GOOD)


@pytest.mark.parametrize(("column", "value"), [("labels", [0, 1]), ("best", 1)])
def test_two_answers_that_become_a_pair_too(column: str, value: Any, tmp_path: Path) -> None:
    rows = rows_of(column, value, [BAD, GOOD])
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, f"'{column}' may say which answer is best")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("quality", [5, 3, 1]),
        ("token_len", [5, 3, 9]),
        ("models", ["x", "y", "z"]),
        ("label", "math"),
        ("chosen", GOOD),
        ("turns", 1),
    ],
)
def test_columns_that_do_not_contradict_the_order_may_be_there(column: str, value: Any, tmp_path: Path) -> None:
    examples, _ = load(tmp_path, rows_of(column, value, [GOOD, MIDDLE, BAD]), "ranked")
    assert examples[0].answers == (GOOD, MIDDLE, BAD)


def test_scores_order_the_answers_whatever_else_is_there(tmp_path: Path) -> None:
    rows = [{**row, "scores": [2, 1, 3]} for row in rows_of("quality", [3, 1, 5], [MIDDLE, BAD, GOOD])]
    assert load(tmp_path, rows, "ranked")[0][0].answers == (GOOD, MIDDLE, BAD)


@pytest.mark.parametrize("kind", ["ranked", "pairs"])
@pytest.mark.parametrize("more", [{}, {"scores": None}])
def test_all_rows_have_scores_or_none_has(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {"prompt": Q, "responses": [BAD, GOOD], "scores": [1, 2]},
        {"prompt": Q2, "responses": [BAD, GOOD], **more},
    ]
    refusal(lambda: load(tmp_path, rows, kind), ExitCode.DATA, "the row has no 'scores', and others have them", ":2")


def test_convert_refuses_them_too(tmp_path: Path) -> None:
    """It would move the column into `meta`, and `fit` would read its file in the wrong order."""
    path = jsonl(tmp_path, rows_of("best", 2, [MIDDLE, BAD, GOOD]))
    refusal(lambda: convert_rows(path), ExitCode.DATA, "'best' may say which answer is best")
