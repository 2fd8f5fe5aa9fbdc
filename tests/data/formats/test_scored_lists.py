"""Lists with scores or ranks: which number is best, ties, and rows whose numbers do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.format_rows import SAMPLES, load, replace, show
from support.format_texts import BAD, GOOD, GOOD2, MIDDLE, Q2, RATINGS, Q, parts
from support.row_files import assistant, refusal, user

from dpo_lightning.data.formats.rated_rows import SINGLE
from dpo_lightning.data.formats.scored_lists import ALL_EQUAL, TIED
from dpo_lightning.errors import ExitCode

BEST_FIRST = (GOOD, MIDDLE, BAD)


def rows_of(column: str, numbers: Any, answers: str = "responses", prompt: str = "prompt") -> list[dict[str, Any]]:
    """Two lists of `MIDDLE, BAD, GOOD` with the same numbers."""
    return [{prompt: question, answers: [MIDDLE, BAD, GOOD], column: numbers} for question in (Q, Q2)]


@pytest.mark.parametrize(
    ("column", "numbers"),
    [
        ("ratings", [3, 1, 5]),
        ("rating", [3.5, -1, 5]),
        ("rewards", [0.2, 0.1, 0.9]),
        ("reward", ["0.2", "0.1", "0.9"]),
        ("score", [3, 1, 5]),
        ("점수", [3, 1, 5]),
        ("rank", [2, 3, 1]),
        ("ranks", [1, 2, 0]),
    ],
)
def test_numbers_beside_the_answers(column: str, numbers: list[Any], tmp_path: Path) -> None:
    for answers in ("responses", "completions", "candidates", "outputs", "generations"):
        examples, _ = load(tmp_path, rows_of(column, numbers, answers), "ranked")
        assert [example.answers for example in examples] == [BEST_FIRST] * 2
    examples, _ = load(tmp_path, rows_of(column, numbers, "completions", "question"), "ranked")
    assert [example.prompt for example in examples] == [Q, Q2]


def test_scores_beside_our_answers_are_our_own_format(tmp_path: Path) -> None:
    examples, lines = load(tmp_path, rows_of("scores", [3, 1, 5]), "ranked")
    assert [example.answers for example in examples] == [BEST_FIRST] * 2
    assert lines == []
    assert load(tmp_path, rows_of("scores", [3, 1, 5], "completions"), "ranked")[0][0].answers == BEST_FIRST


def test_two_answers_are_a_pair_too(tmp_path: Path) -> None:
    rows = [{"prompt": question, "responses": [BAD, GOOD], "rank": [2, 1]} for question in (Q, Q2)]
    assert [example.answers for example in load(tmp_path, rows, "pairs")[0]] == [(GOOD, BAD)] * 2
    refusal(lambda: load(tmp_path, rows_of("rank", [2, 3, 1]), "pairs"), ExitCode.DATA, "3 answers", "dpo-listwise")


@pytest.mark.parametrize("column", ["ranking", "rankings", "순위", "order"])
def test_a_ranking_has_two_meanings(column: str, tmp_path: Path) -> None:
    """Ranks of the answers (the middle one is second), or the answers in order (the third is best)."""
    rows = rows_of(column, [2, 3, 1])
    message = refusal(lambda: load(tmp_path, rows, "ranked"), ExitCode.DATA, f"'{column}'", "2, 3, 1")
    for ours, best in (("rank", BEST_FIRST), ("order", (BAD, GOOD, MIDDLE))):
        assert f"--data.columns.NAME {column}, where NAME is rank (" in message
        assert f"or {ours} (" in message or f"is {ours} (" in message
        examples, lines = load(tmp_path, rows, "ranked", columns={ours: column})
        assert [example.answers for example in examples] == [best] * 2
        assert ("the least is best" in lines[0]) == (ours == "rank")


@pytest.mark.parametrize("numbers", [[1, 3, 2], [2, 1, 0], [3, 2, 1]])
def test_a_ranking_that_means_the_same_both_ways_is_read(numbers: list[int], tmp_path: Path) -> None:
    found = load(tmp_path, rows_of("ranking", numbers), "ranked")[0]
    for ours in ("rank", "order"):
        assert load(tmp_path, rows_of("ranking", numbers), "ranked", columns={ours: "ranking"})[0] == found


def test_tied_answers(tmp_path: Path) -> None:
    rows = [
        *rows_of("ratings", [3, 1, 5]),
        {"prompt": "Third?", "responses": [GOOD, BAD, MIDDLE], "ratings": [2, 1, 2]},
    ]
    examples, lines = load(tmp_path, rows, "ranked")
    assert examples[2].answers == (GOOD, BAD)
    assert any(line.startswith(f"{TIED}: 1 (") for line in lines)
    rows[2]["ratings"] = [2, 2, 2]
    examples, lines = load(tmp_path, rows, "ranked")
    assert len(examples) == 2
    assert any(line.startswith(f"{ALL_EQUAL}: 1 (") for line in lines)


@pytest.mark.parametrize(
    ("column", "numbers", "part"),
    [
        ("ratings", [3, 1], "'ratings' has 2 numbers, and there are 3 answers"),
        ("ratings", [3, None, 1], "'ratings' 2 is not a number"),
        ("ratings", [3, "good", 1], "'ratings' 2 is not a number"),
        ("ratings", [3, True, 1], "'ratings' 2 is not a number"),
        ("ratings", "high", "'ratings' is not a list"),
        ("ratings", None, "'ratings' is not a list"),
        ("rank", [3, [1], 2], "'rank' 2 is not a number"),
    ],
)
def test_bad_numbers(column: str, numbers: Any, part: str, tmp_path: Path) -> None:
    rows = [*rows_of(column, [3, 1, 2]), {"prompt": "Third?", "responses": [GOOD, BAD, MIDDLE], column: numbers}]
    refusal(lambda: load(tmp_path, rows, "ranked"), ExitCode.DATA, part, "rows.jsonl:3")


def test_an_order_that_lacks_an_answer(tmp_path: Path) -> None:
    rows = rows_of("ranking", [1, 1, 2])
    refusal(
        lambda: load(tmp_path, rows, "ranked", columns={"order": "ranking"}), ExitCode.DATA, "'order' does not have"
    )


def test_two_orders_are_refused(tmp_path: Path) -> None:
    rows = [{**row, "rank": [1, 2, 3]} for row in rows_of("ratings", [3, 1, 5])]
    refusal(lambda: load(tmp_path, rows, "ranked"), ExitCode.DATA)


@pytest.mark.parametrize("text", ["text", "response", "content", "answer", "output"])
@pytest.mark.parametrize(("score", "numbers"), [("score", (2, 1, 3)), ("rating", (2, 1, 3)), ("rank", (2, 3, 1))])
def test_objects_with_a_text_and_a_number(text: str, score: str, numbers: Sequence[int], tmp_path: Path) -> None:
    items = [{text: item, score: number} for item, number in zip((MIDDLE, BAD, GOOD), numbers, strict=True)]
    for name in ("responses", "completions", "answers"):
        rows = [{"prompt": question, name: items} for question in (Q, Q2)]
        assert [example.answers for example in load(tmp_path, rows, "ranked")[0]] == [BEST_FIRST] * 2


def test_completions_of_messages_with_ranks_from_0(tmp_path: Path) -> None:
    completions = [{"rank": 1, "completion": [assistant(BAD)]}, {"rank": 0, "completion": [assistant(GOOD)]}]
    rows = [{"context": [user(question)], "completions": completions, "task_name": "x"} for question in (Q, Q2)]
    example = load(tmp_path, rows, "pairs")[0][0]
    assert show(example.prompt) == [("user", Q)]
    assert [show(text) for text in example.answers] == [[("assistant", GOOD)], [("assistant", BAD)]]


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (["completions", 1], "text", "'completions 2' is not an object"),
        (["completions", 1], {"response": BAD}, "'completions 2' has no 'overall_score'"),
        (["completions", 1], {"overall_score": 1}, "'completions 2' has no 'response'"),
        (["completions", 1, "overall_score"], None, "'overall_score' of completions 2 is not a number"),
        (["completions"], {}, "'completions' is not a list"),
        (["instruction"], None, "'instruction' is null"),
    ],
)
def test_bad_objects(path: list[Any], value: Any, part: str, tmp_path: Path) -> None:
    first, *others = SAMPLES["ultrafeedback"].rows
    refusal(lambda: load(tmp_path, [*others, others[0], replace(first, path, value)], "ranked"), ExitCode.DATA, part)


def test_rated_rows_of_one_prompt_are_joined(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "response": text, "helpfulness": score, **RATINGS}
        for prompt, text, score in (
            *((Q, MIDDLE, 2), (Q, GOOD, 4), (Q, BAD, 2), (Q2, GOOD2, 3)),
            *(("Third?", GOOD, 1), ("Third?", BAD, 1), ("Fourth?", BAD, 0), ("Fourth?", GOOD, 1)),
        )
    ]
    examples, lines = load(tmp_path, rows, "ranked")
    found = [[show(text)[0][1] for text in example.answers] for example in examples]
    assert found == [[GOOD, MIDDLE], [GOOD, BAD]]
    assert [line.partition(":")[0] for line in lines[1:4]] == [TIED, SINGLE, ALL_EQUAL]
    rows[1]["helpfulness"] = None
    refusal(lambda: load(tmp_path, rows, "ranked"), ExitCode.DATA, "'helpfulness' is not a number", "rows.jsonl:2")


def test_marks_of_turns_in_helpsteers_prompts(tmp_path: Path) -> None:
    prompt = f"{Q}\n<extra_id_1>Assistant\n{GOOD}\n<extra_id_1>User\nAnd at night?\n<extra_id_1>Assistant\n"
    rows = [
        {"prompt": prompt, "response": text, "helpfulness": place, **RATINGS}
        for place, text in enumerate(("Red.", "Black."))
    ]
    rows = [*rows, *({**row, "prompt": Q} for row in rows)]
    example = load(tmp_path, rows, "ranked")[0][0]
    assert show(example.prompt) == [("user", Q), ("assistant", GOOD), ("user", "And at night?")]
    broken = [{**row, "prompt": f"{Q}\n<extra_id_1>User\n{Q2}"} for row in rows]
    refusal(lambda: load(tmp_path, broken, "ranked"), ExitCode.DATA, "do not alternate")


Write = Callable[[str, list[str], list[int]], dict[str, Any]]


def write_numbers(column: str, sign: int) -> Write:
    """A writer of texts and a list of numbers; `order` has the place of each text among the best."""
    return lambda prompt, texts, order: {"q": prompt, "answers": texts, column: [sign * place for place in order]}


def write_objects(text: str, score: str, sign: int) -> Write:
    """A writer of objects."""
    return lambda prompt, texts, order: {
        "instruction": prompt,
        "completions": [{text: item, score: sign * place} for item, place in zip(texts, order, strict=True)],
    }


def write_columns(prompt: str, texts: list[str], order: list[int]) -> dict[str, Any]:
    return {"prompt": prompt, **{f"completion_{i}": text for i, text in enumerate(texts)}, "ranking": order}


def write_gemini(prompt: str, texts: list[str], order: list[int]) -> dict[str, Any]:
    items = zip(texts, order, strict=True)
    completions = [{"score": -place, "completion": parts("model", text)} for text, place in items]
    return {"contents": [parts("user", prompt)], "completions": completions}


WRITERS: dict[str, Write] = {
    "ratings": write_numbers("ratings", -1),
    "ranks": write_numbers("rank", 1),
    "scores in objects": write_objects("text", "score", -1),
    "ranks in objects": write_objects("answer", "rank", 1),
    "UltraFeedback": write_objects("response", "overall_score", -1),
    "columns": write_columns,
    "Gemini": write_gemini,
}
TEXTS = st.text(alphabet="abcdefgh 가나é.!", min_size=3, max_size=20).map(
    lambda text: f"It is {' '.join(text.split())} indeed"
)
LISTS = st.tuples(TEXTS, st.lists(TEXTS, min_size=2, max_size=5, unique=True), st.randoms())


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(LISTS, min_size=2, max_size=4, unique_by=lambda row: row[0]))
def test_lists_that_are_written_are_read_back(
    name: str, rows: list[tuple[str, list[str], Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = []
    for prompt, texts, random in rows:
        order = list(range(len(texts)))
        random.shuffle(order)
        written.append((prompt, [texts[place] for place in order], order))
    examples, _ = load(tmp_path_factory.getbasetemp(), [WRITERS[name](*row) for row in written], "ranked")
    found = [[show(text) for text in (example.prompt, *example.answers)] for example in examples]
    texts = [[item if isinstance(item, str) else item[0][1] for item in row] for row in found]
    assert texts == [[prompt, *best_first] for prompt, best_first, _ in rows]
