"""Verdicts that name the file's own columns, compare two letters, or are no verdict of two values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.format_rows import load
from support.format_texts import BAD, GOOD, Q2, Q
from support.row_files import refusal

from dpo_lightning.data.formats.verdicts import TIE
from dpo_lightning.errors import ExitCode

PAIRS = [(GOOD, BAD)] * 2


def rows_of(first: Any, second: Any, names: tuple[str, str] = ("response_a", "response_b")) -> list[dict[str, Any]]:
    """Two rows: the first answer is better in the one, the second in the other."""
    return [
        {"prompt": Q, names[0]: GOOD, names[1]: BAD, "winner": first},
        {"prompt": Q2, names[0]: BAD, names[1]: GOOD, "winner": second},
    ]


def test_a_verdict_may_be_the_file_s_name_of_an_answer(tmp_path: Path) -> None:
    columns = {"answer_1": "gpt4", "answer_2": "llama", "verdict": "winner"}
    rows = rows_of("GPT4", "llama", ("gpt4", "llama"))
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "--data.columns.answer_1 gpt4", "verdict winner")
    examples, _ = load(tmp_path, rows, "pairs", columns=columns)
    assert [example.answers for example in examples] == PAIRS


@pytest.mark.parametrize(
    ("first", "second"),
    [("A>B", "B>A"), ("A >> B", "A << B"), ("[[A>B]]", "[[B>>A]]"), ("A is better", "B is better")],
)
def test_comparisons_of_two_letters(first: str, second: str, tmp_path: Path) -> None:
    assert [example.answers for example in load(tmp_path, rows_of(first, second), "pairs")[0]] == PAIRS


@pytest.mark.parametrize("tie", ["A=B", "Tie (both bad)", "Both are bad", "about the same"])
def test_ties(tie: str, tmp_path: Path) -> None:
    rows = [*rows_of("A>B", "B>A"), {"prompt": "Another?", "response_a": GOOD, "response_b": BAD, "winner": tie}]
    examples, lines = load(tmp_path, rows, "pairs")
    assert [example.answers for example in examples] == PAIRS
    assert any(TIE in line for line in lines)


@pytest.mark.parametrize("verdict", ["A>A", "A>C", "A>B>A", "A is not better", "B is worse", ">", "A>"])
def test_verdicts_that_name_no_better_answer(verdict: str, tmp_path: Path) -> None:
    refusal(lambda: load(tmp_path, rows_of(verdict, "B>A"), "pairs"), ExitCode.DATA, "'winner' does not name")


def test_grades_are_no_verdicts_of_two_values(tmp_path: Path) -> None:
    rows = [*rows_of(1.02, 1.98), {**rows_of(1, 2)[0], "prompt": "x", "winner": 1.5}]
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "fix: write a or b into the column")


@pytest.mark.parametrize(("chosen", "rejected"), [(("a", "b"), ("b", "a")), ((1, 2), (2, 1))])
def test_chosen_and_rejected_that_point_to_answers(chosen: Any, rejected: Any, tmp_path: Path) -> None:
    names = ("answer_a", "answer_b") if chosen[0] == "a" else ("answer_1", "answer_2")
    rows = [
        {"prompt": Q, names[0]: GOOD, names[1]: BAD, "chosen": chosen[0], "rejected": rejected[0]},
        {"prompt": Q2, names[0]: BAD, names[1]: GOOD, "chosen": chosen[1], "rejected": rejected[1]},
    ]
    assert [example.answers for example in load(tmp_path, rows, "pairs")[0]] == PAIRS


def test_letters_that_are_answers_themselves(tmp_path: Path) -> None:
    rows = [{"prompt": question, "chosen": "A", "rejected": "B"} for question in (Q, Q2)]
    assert load(tmp_path, rows, "pairs")[0][0].answers == ("A", "B")


@pytest.mark.parametrize(("high", "low"), [("10", "9"), ("4.5", "-1")])
def test_scores_as_text_are_compared_as_numbers(high: str, low: str, tmp_path: Path) -> None:
    """A table of CSV has no other scores."""
    rows = [
        {"prompt": Q, "response_a": GOOD, "response_b": BAD, "score_a": high, "score_b": low},
        {"prompt": Q2, "response_a": BAD, "response_b": GOOD, "score_a": low, "score_b": high},
    ]
    assert [example.answers for example in load(tmp_path, rows, "pairs")[0]] == PAIRS
    rows[1]["score_a"] = "n/a"
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "'score_a' is not a number", ":2")
