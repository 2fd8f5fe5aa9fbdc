"""Two answers and a verdict: every verdict that is read, every one that is refused, and that the way out works."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from support.format_rows import SAMPLES, load, show
from support.format_texts import BAD, GOOD, PAIR_ROWS, Q2, Q
from support.row_files import assistant, refusal, user

from dpo_lightning.data.formats.verdicts import TIE
from dpo_lightning.errors import ExitCode

A, B = ("response_a", "response_b")


def rows_of(names: tuple[str, str], verdict: str, first: Any, second: Any) -> list[dict[str, Any]]:
    """Two rows: the first answer is better in the one, the second in the other."""
    return [
        {"prompt": Q, names[0]: GOOD, names[1]: BAD, verdict: first},
        {"prompt": Q2, names[0]: BAD, names[1]: GOOD, verdict: second},
    ]


def read_ways(message: str) -> list[dict[str, str]]:
    """The options of the ways out that a message names."""
    fix = message.rpartition("\nfix: ")[2]
    values = fix.rpartition(": ")[2].split(" or ") if "--data.first_wins VALUE, " in fix else []
    return [{"first_wins": value} for value in values] or [
        dict(re.findall(r"--data\.columns\.(\w+) (\w+)", way)) for way in fix.split(" or ")
    ]


@pytest.mark.parametrize(
    ("names", "verdict", "values"),
    [
        ((A, B), "winner", ("a", "b")),
        ((A, B), "winner", ("A", " B ")),
        ((A, B), "winner", ("model_a", "model_b")),
        ((A, B), "preference", ("response_a", "response_b")),
        ((A, B), "label", ("Response A", "Response B")),
        ((A, B), "verdict", ("[[A]]", "[[B]]")),
        ((A, B), "choice", ("left", "right")),
        ((A, B), "choice", (1, 2)),
        ((A, B), "chosen", (GOOD, GOOD)),
        (("answer_A", "answer_B"), "better", ("A", "B")),
        (("completionA", "completionB"), "winner", ("a", "b")),
        (("output_1", "output_2"), "preference", (1, 2)),
        (("output_1", "output_2"), "preference", (1.0, 2.0)),
        (("output_1", "output_2"), "preference", ("1", "2")),
        (("response1", "response2"), "winner", ("response1", "response2")),
        (("response_1", "response_2"), "winner", ("first", "second")),
        (("response_1", "response_2"), "winner", ("a", "b")),
        (("response_0", "response_1"), "better_response_id", (0, 1)),
        (("response_0", "response_1"), "winner", ("response_0", "response_1")),
        (("model_a_response", "model_b_response"), "winner", ("model_a", "model_b")),
        (("first_response", "second_response"), "winner", ("first", "second")),
        (("left_answer", "right_answer"), "winner", ("left", "right")),
        (("답변1", "답변2"), "승자", ("답변1", "답변2")),
        (("답변1", "답변2"), "선호", (1, 2)),
        (("답변A", "답변B"), "판정", ("A", "B")),
        (("A", "B"), "winner", ("A", "B")),
    ],
)
def test_verdicts(names: tuple[str, str], verdict: str, values: tuple[Any, Any], tmp_path: Path) -> None:
    examples, _ = load(tmp_path, rows_of(names, verdict, *values), "pairs")
    assert [example.prompt for example in examples] == [Q, Q2]
    assert [example.answers for example in examples] == [(GOOD, BAD)] * 2
    assert all(example.margin is None for example in examples)


def test_names_of_models_in_columns_of_their_own(tmp_path: Path) -> None:
    rows = [{**row, "model_a": "old", "model_b": "new"} for row in rows_of((A, B), "winner_model", "old", "new")]
    assert [example.answers for example in load(tmp_path, rows, "pairs")[0]] == [(GOOD, BAD)] * 2


@pytest.mark.parametrize("tie", ["tie", "TIE", "both", "none", "equal", "tie (bothbad)", "동점", "무승부"])
def test_ties_are_left_out_and_counted(tie: str, tmp_path: Path) -> None:
    rows = [*rows_of((A, B), "winner", "a", "b"), {"prompt": "What else?", A: BAD, B: GOOD, "winner": tie}]
    examples, lines = load(tmp_path, rows, "pairs")
    assert len(examples) == 2
    assert [line for line in lines if line.startswith(f"{TIE}: 1 (")] != []
    refusal(lambda: load(tmp_path, rows, "pairs", strict=True), ExitCode.DATA, TIE, "rows.jsonl:3")


@pytest.mark.parametrize(
    ("names", "values", "first"),
    [
        (("response_1", "response_2"), (0, 1), "0"),
        (("response_1", "response_2"), (1, 0), "1"),
        (("response_1", "response_2"), ("1", "0"), "1"),
        ((A, B), (0, 1), "0"),
        ((A, B), (1, 0), "1"),
        ((A, B), (True, False), "true"),
        ((A, B), (False, True), "false"),
        ((A, B), (-1, 1), "negative"),
        ((A, B), (1, -1), "positive"),
        ((A, B), (3, -2), "positive"),
        ((A, B), (-3, 2), "negative"),
        (("response_0", "response_1"), (1, 2), "1"),
    ],
)
def test_numbers_of_two_meanings(names: tuple[str, str], values: tuple[Any, Any], first: str, tmp_path: Path) -> None:
    """They are refused, and each option of the message gives one of the two orders."""
    rows = rows_of(names, "label", *values)
    message = refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "'label'", names[0])
    ways = [way["first_wins"] for way in read_ways(message)]
    assert first in ways
    orders = {way: load(tmp_path, rows, "pairs", first_wins=way)[0][0].answers for way in ways[:2]}
    assert orders.pop(first) == (GOOD, BAD)
    assert [*orders.values()] == [(BAD, GOOD)]


@pytest.mark.parametrize("names", [("response_1", "response_2"), ("response_0", "response_1"), (A, B)])
@pytest.mark.parametrize("value", [0, 1, True])
def test_sets_with_one_number_are_unclear_too(names: tuple[str, str], value: Any, tmp_path: Path) -> None:
    rows = rows_of(names, "label", value, value)
    message = refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "'label'")
    orders = [load(tmp_path, rows, "pairs", **way)[0][0].answers for way in read_ways(message)[:2]]
    assert sorted(orders) == sorted([(GOOD, BAD), (BAD, GOOD)])


def test_an_index_may_be_the_same_in_all_rows(tmp_path: Path) -> None:
    rows = rows_of(("response_0", "response_1"), "better_response_id", 0, 0)
    assert [example.answers for example in load(tmp_path, rows, "pairs")[0]] == [(GOOD, BAD), (BAD, GOOD)]


def test_grades_are_not_read_as_numbers_of_columns(tmp_path: Path) -> None:
    """A 2 of `overall_preference` may be on a scale from 1 to 7."""
    rows = rows_of(("response_1", "response_2"), "overall_preference", 2, 1)
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "'overall_preference' is 1 or 2", ": 1 or 2")
    assert load(tmp_path, rows, "pairs", first_wins=2)[0][0].answers == (GOOD, BAD)
    options: dict[str, Any] = {"columns": {"verdict": "overall_preference"}}
    refusal(lambda: load(tmp_path, rows, "pairs", **options), ExitCode.DATA, "'overall_preference' is 1 or 2")


def test_a_graded_verdict_gives_margins(tmp_path: Path) -> None:
    rows = [*rows_of((A, B), "preference", -3, 2), {"prompt": "What else?", A: BAD, B: GOOD, "preference": 0}]
    examples, lines = load(tmp_path, rows, "pairs", first_wins="negative")
    assert [(example.answers, example.margin) for example in examples] == [((GOOD, BAD), 3.0), ((GOOD, BAD), 2.0)]
    assert any(line.startswith(TIE) for line in lines)


def test_two_verdicts_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    rows = [
        {**row, "safer_response_id": 1 - row["better_response_id"]}
        for row in rows_of(("response_0", "response_1"), "better_response_id", 0, 1)
    ]
    message = refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "verdict")
    found = [load(tmp_path, rows, "pairs", columns=way)[0][0].answers for way in read_ways(message)]
    assert found == [(GOOD, BAD), (BAD, GOOD)]


def test_two_pairs_of_answers_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    rows = [{**row, "text_1": "x", "text_2": "y"} for row in rows_of(("output_1", "output_2"), "winner", "1", "2")]
    message = refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "pair of answers")
    assert load(tmp_path, rows, "pairs", columns=read_ways(message)[0])[0][0].answers == (GOOD, BAD)


def test_columns_of_any_name_can_be_mapped(tmp_path: Path) -> None:
    rows = [
        {"ask": row["prompt"], "x": row[A], "y": row[B], "z": row["winner"]}
        for row in rows_of((A, B), "winner", "one", "two")
    ]
    columns = {"prompt": "ask", "answer_1": "x", "answer_2": "y", "verdict": "z"}
    assert [example.answers for example in load(tmp_path, rows, "pairs", columns=columns)[0]] == [(GOOD, BAD)] * 2


@pytest.mark.parametrize(
    ("change", "options", "parts"),
    [
        ({"winner": None}, {}, ("'winner' has no verdict", "null")),
        ({"winner": ""}, {}, ("'winner' has no verdict",)),
        ({"winner": "c"}, {}, ("'winner' does not name", "--data.first_wins")),
        ({"winner": "a b"}, {}, ("'winner' does not name",)),
        ({"winner": 3}, {}, ("'winner'", "--data.first_wins")),
        ({"winner": ["a"]}, {}, ("'winner'",)),
        ({"winner": "B", A: "B", B: "A"}, {}, ("may mean 'response_a' and 'response_b' both",)),
        ({A: None}, {}, ("'response_a' is null",)),
        ({B: 7}, {}, ("'response_b' is not text",)),
        ({}, {"first_wins": "nobody"}, ("does not name", "(a, b)")),
        ({"winner": "c"}, {"first_wins": "a"}, ("does not name", "(a, b, c)")),
    ],
)
def test_bad_rows(change: Mapping[str, Any], options: dict[str, Any], parts: tuple[str, ...], tmp_path: Path) -> None:
    rows = [*rows_of((A, B), "winner", "a", "b"), {"prompt": "What else?", A: GOOD, B: BAD, "winner": "a", **change}]
    refusal(lambda: load(tmp_path, rows, "pairs", **options), ExitCode.DATA, "rows.jsonl:", *parts)


def test_first_wins_needs_a_verdict(tmp_path: Path) -> None:
    rows = SAMPLES["pairs"].rows
    refusal(lambda: load(tmp_path, rows, "pairs", first_wins="a"), ExitCode.CONFIG, "data.first_wins")


def test_text_of_other_columns_is_not_dropped(tmp_path: Path) -> None:
    rows = [{**row, "passage": "It is what the answer is about."} for row in rows_of((A, B), "winner", "a", "b")]
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "'passage'", "--data.ignore_columns")


def test_three_columns_of_answers_are_no_comparison(tmp_path: Path) -> None:
    rows = [{**row, "output_3": "y"} for row in rows_of(("output_1", "output_2"), "winner", "1", "2")]
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA)


Write = Callable[[str, str, str, bool], dict[str, Any]]


def write_numbered(ends: str, verdicts: tuple[Any, Any], column: str) -> Write:
    """A writer of rows whose first answer is the better one, or the second where `swap`."""

    def write(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
        first, second = (bad, good) if swap else (good, bad)
        names = [f"response_{end}" for end in ends]
        return {"prompt": prompt, names[0]: first, names[1]: second, column: verdicts[swap]}

    return write


def write_arena(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    talks = [[user(prompt), assistant(text)] for text in ((bad, good) if swap else (good, bad))]
    return {"conversation_a": talks[0], "conversation_b": talks[1], "winner": ("model_a", "model_b")[swap]}


def write_arena_texts(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    texts = [json.dumps([text]) for text in ((bad, good) if swap else (good, bad))]
    flags = {"winner_model_a": int(not swap), "winner_model_b": int(swap), "winner_tie": 0}
    return {"prompt": json.dumps([prompt]), "response_a": texts[0], "response_b": texts[1], **flags}


def write_shp(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    first, second = (bad, good) if swap else (good, bad)
    return {"history": prompt, "human_ref_A": first, "human_ref_B": second, "labels": int(not swap)}


def write_helpsteer3(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    first, second = (bad, good) if swap else (good, bad)
    strength = 2 if swap else -1
    return {"context": [user(prompt)], "response1": first, "response2": second, "overall_preference": strength}


def write_webgpt(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    first, second = (bad, good) if swap else (good, bad)
    scores = {"score_0": 0.25 - swap, "score_1": swap - 0.25}
    return {"question": {"full_text": prompt}, "answer_0": first, "answer_1": second, **scores}


def write_summaries(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    texts = [{"text": text} for text in ((bad, good) if swap else (good, bad))]
    return {"info": {"article": prompt}, "summaries": texts, "choice": int(swap)}


WRITERS = {
    "letters": write_numbered("ab", ("a", "b"), "winner"),
    "models": write_numbered("AB", ("model_a", "model_b"), "winner"),
    "numbers": write_numbered("12", ("response_1", "response_2"), "preference"),
    "indices": write_numbered("01", (0, 1), "better_response_id"),
    "arena": write_arena,
    "arena-texts": write_arena_texts,
    "shp": write_shp,
    "helpsteer3": write_helpsteer3,
    "webgpt": write_webgpt,
    "summary-comparisons": write_summaries,
}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40, deadline=None)
@given(rows=PAIR_ROWS)
def test_pairs_that_are_written_are_read_back(
    name: str, rows: list[tuple[str, str, str, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    examples, _ = load(folder, [WRITERS[name](*row) for row in rows], "pairs")
    found = [tuple(map(find_text, (example.prompt, *example.answers))) for example in examples]
    ended = "\n\nTL;DR:" if name == "summary-comparisons" else ""
    assert found == [(prompt + ended, good, bad) for prompt, good, bad, _ in rows]


def find_text(text: Any) -> str:
    """A text, or the content of the only message."""
    shown = show(text)
    return shown if isinstance(shown, str) else "".join(content for _, content in shown)
