"""`bad_rows: drop`: bad rows are left out, counted by reason and listed; what is not the fault of a row is an error."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user, written

from dpo_lightning.data.convert import convert_rows
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.readers.bad_rows import BadRows
from dpo_lightning.data.readers.left_out import LeftOutRow, format_left_out
from dpo_lightning.errors import ExitCode

MORE = {"prompt": "Name a river.", "chosen": "The Han.", "rejected": "A road."}
GOOD = [PAIR, OTHER, MORE]


def drop(kind: Any, path: str, **options: Any) -> tuple[list[Any], list[LeftOutRow], BadRows]:
    """The sound rows of a file, and those that are left out."""
    bad = BadRows(drops=True)
    examples, _ = load_examples(kind, path, bad=bad, **options)
    return list(examples), bad.leave_out(), bad


def test_bad_rows_are_left_out_with_their_places_and_reasons(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "chosen": ""}, OTHER, '{"prompt": "x", ', {**MORE, "rejected": None}, MORE, 3, *GOOD]
    rows[7:] = [{**row, "prompt": f"{row['prompt']} And?"} for row in GOOD]
    path = jsonl(tmp_path, rows)
    examples, left, bad = drop(PairKind, path)
    assert [example.origin.line for example in examples] == [1, 3, 6, 8, 9, 10]
    assert [(row.file, row.line) for row in left] == [(path, 2), (path, 4), (path, 5), (path, 7)]
    assert left[0].reasons == ["'chosen' is empty"]
    assert left[2].reasons == ["'rejected' is null"]
    assert bad.total == 10
    refusal(partial(load_examples, PairKind, path), ExitCode.DATA, f"{path}:2", f"{path}:7")  # the default


@pytest.mark.parametrize(
    ("kind", "good", "wrong"),
    [
        (SFTKind, [{"prompt": f"Say {w}.", "completion": w} for w in "abc"], {"prompt": "x", "completion": " "}),
        (
            SFTKind,
            [{"messages": [user(w), assistant(w)]} for w in "abc"],
            {"messages": [user("x"), {"role": "assistant", "content": [{"type": "image"}]}]},
        ),
        (RankedKind, [{"prompt": f"{w}?", "responses": [w, "no"]} for w in "abc"], {"prompt": "x", "responses": ["x"]}),
        (
            UnpairedKind,
            [{"prompt": f"Say {w}.", "completion": w, "label": w < "c"} for w in "abc"],
            {"prompt": "x", "completion": "y", "label": "maybe"},
        ),
        (PairKind, [{**row, "image": None} for row in GOOD], {**PAIR, "prompt": "What is it?", "image": "a.png"}),
        (PairKind, GOOD, {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}),
        (PairKind, [{**row, "weight": 1} for row in GOOD], {**PAIR, "prompt": "Why?", "weight": -1}),
        (
            PairKind,  # another format than ours
            [
                {"chosen": f"\n\nHuman: {w}\n\nAssistant: yes", "rejected": f"\n\nHuman: {w}\n\nAssistant: no"}
                for w in "abc"
            ],
            {"chosen": "yes", "rejected": "no"},
        ),
        (UnpairedKind, GOOD, {**PAIR, "prompt": "Why?", "chosen": ""}),
    ],
)
def test_rows_of_every_kind(tmp_path: Path, kind: Any, good: list[Any], wrong: Any) -> None:
    path = jsonl(tmp_path, [wrong, *good])
    sound, left, _ = drop(kind, path)
    assert [row.line for row in left] == [1]
    assert {example.origin.line for example in sound} == {2, 3, 4}
    alone = load_examples(kind, jsonl(tmp_path, good, "good.jsonl"))[0]
    assert [(example.prompt, example.answers) for example in sound] == [(e.prompt, e.answers) for e in alone]


def test_rows_that_need_pictures_are_left_out_one_by_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PAIR, {**OTHER, "images": ["a"]}, {**MORE, "images": []}, {**MORE, "images": ["b"]}, OTHER])
    examples, left, _ = drop(PairKind, path)
    assert ([example.origin.line for example in examples], [row.line for row in left]) == ([1, 3, 5], [2, 4])
    assert "these rows need pictures" in left[0].reasons[0]


def test_strict_rows_are_left_out_as_well(tmp_path: Path) -> None:
    examples, left, _ = drop(PairKind, jsonl(tmp_path, [*GOOD, PAIR]), strict=True)
    assert (len(examples), [row.line for row in left]) == (3, [4])


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([*GOOD, {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}], "the other way round"),
        ([{**row, "context": "The sea is blue."} for row in GOOD], "'context' has text that is not read"),
    ],
)
def test_what_is_not_the_fault_of_a_row_is_an_error(tmp_path: Path, rows: list[Any], what: str) -> None:
    path = jsonl(tmp_path, [*rows, {**MORE, "prompt": "Why?", "chosen": ""}])
    refusal(lambda: drop(PairKind, path), ExitCode.DATA, what)


@pytest.mark.parametrize(
    ("kind", "rows", "wrong"),
    [
        (PairKind, GOOD, {"question": "Why?", "chosen": "So.", "rejected": "No."}),
        (PairKind, GOOD, {**MORE, "chosen": "", "context": "The sea is blue."}),
        (
            RankedKind,
            [{"prompt": f"{w}?", "responses": [w, "no"]} for w in "abc"],
            {"prompt": "x", "responses": ["y", ""], "ratings": [1, 2]},
        ),
        (
            RankedKind,
            [{"prompt": f"{w}?", "responses": [w, "no"]} for w in "abc"],
            {"prompt": "x", "responses": ["y", ""], "scores": [1, 2]},
        ),
    ],
)
def test_the_columns_of_a_row_that_is_left_out_do_not_count(
    tmp_path: Path, kind: Any, rows: list[Any], wrong: dict[str, Any]
) -> None:
    path = jsonl(tmp_path, [*rows, wrong])
    examples, left, _ = drop(kind, path)
    assert ([example.origin.line for example in examples], [row.line for row in left]) == ([1, 2, 3], [4])
    assert len(convert_rows(path).rows) == 3


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (json.dumps(GOOD)[:-40], "cut.json"),
        ('prompt,chosen,rejected\na,b,c\nd,e,f\ng,"h"x,i\nj,k,l\n', "quote.csv"),
        (json.dumps(GOOD) + " and so on", "trailing.json"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_an_error(tmp_path: Path, content: str, name: str) -> None:
    """The rows after the fault would be left out without a count."""
    path = written(tmp_path, content, name)
    refusal(lambda: drop(PairKind, path), ExitCode.DATA, name)


@pytest.mark.parametrize(("good", "wrong"), [(3, 4), (0, 3), (1, 2)])
def test_more_than_half_is_too_much(tmp_path: Path, good: int, wrong: int) -> None:
    """And a set needs two rows."""
    path = jsonl(tmp_path, [*GOOD[:good], *({**PAIR, "chosen": ""} for _ in range(wrong))])
    said = refusal(lambda: drop(PairKind, path), ExitCode.DATA, "'chosen' is empty")
    assert f"{wrong} of {good + wrong} rows are bad" in said or not good


def test_half_is_not(tmp_path: Path) -> None:
    assert len(drop(PairKind, jsonl(tmp_path, [*GOOD, *[{**PAIR, "chosen": ""}] * 3]))[0]) == 3


def test_more_bad_rows_than_an_error_reads(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Name {k}."} for k in range(1100)]
    path = jsonl(tmp_path, [row for k, row in enumerate(rows) for row in (row, {**row, "chosen": ""})])
    examples, left, bad = drop(PairKind, path)
    assert (len(examples), len(left), bad.total) == (1100, 1100, 2200)


def test_the_counts_by_reason() -> None:
    rows = [LeftOutRow("f", line, 1, ["'chosen' is empty"], "") for line in range(1, 8)]
    rows += [
        LeftOutRow("f", 9, 2, ["message 3 has no role", "odd"], "x"),
        LeftOutRow("g", 1, 1, ["message 12 has no role"], ""),
    ]
    assert format_left_out(rows, 100) == [
        "bad rows are left out: 9 of 100 (9.0%)",
        "left out, 'chosen' is empty: 7 (f:1, f:2, f:3, f:4, f:5, and 2 more)",
        "left out, message ... has no role: 2 (f:9 (row 2 of the line), g:1)",
        "left out, odd: 1 (f:9 (row 2 of the line))",
    ]
    assert format_left_out([], 100) == []


def test_numbers_that_differ_within_a_reason_are_not_shown() -> None:
    """Those of the first row are not those of the others; what all have in common is."""
    shown = ("the row has {} fields, but the header has 3",) * 2
    rows = [LeftOutRow("f", n, 1, [text.format(n)], "") for n, text in zip((2, 15), shown, strict=True)]
    assert format_left_out(rows, 9)[1] == "left out, the row has ... fields, but the header has 3: 2 (f:2, f:15)"
    assert format_left_out(rows[:1], 9)[1] == "left out, the row has 2 fields, but the header has 3: 1 (f:2)"


def test_reasons_without_a_line_of_their_own() -> None:
    rows = [LeftOutRow("f", line, 1, [f"it is {letter}"], "") for line, letter in enumerate("abcdefghijklm")]
    assert format_left_out(rows, 26)[-1] == "left out for 3 other reasons: 3"


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([*GOOD, {**PAIR, "chosen": ""}], True),
        ([PAIR, *[{**PAIR, "chosen": ""}] * 2], False),  # more than half
        ([*GOOD, {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}], False),  # not one row's fault
    ],
)
def test_errors_name_the_option_where_it_helps(tmp_path: Path, rows: list[Any], named: bool) -> None:
    said = refusal(partial(load_examples, PairKind, jsonl(tmp_path, rows)), ExitCode.DATA)
    assert ("fix: leave such rows out, counted and listed: --data.bad_rows drop\n" in f"{said}\n") == named
    pictures = jsonl(tmp_path, [*GOOD, {**PAIR, "image": "a.png"}])
    assert refusal(partial(load_examples, PairKind, pictures), ExitCode.DATA).count("bad_rows drop") == 1
