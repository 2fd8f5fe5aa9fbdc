"""What holds for a set of rows as a whole: its columns, its size, its files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from support.row_files import OTHER, PAIR, assistant, jsonl, refusal, user, written

from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode, UserError

THIRD = {"prompt": "c", "chosen": "d", "rejected": "e"}


def renamed(row: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in row.items()}


@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_a_key_that_all_rows_lack_shows_the_keys_found(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path, [renamed(PAIR, **{name: "zzz"}), renamed(OTHER, **{name: "zzz"})])
    refusal(
        lambda: load_examples(PairKind, path),
        ExitCode.DATA,
        f"no row has the column '{name}'",
        "zzz",
        f"{path}:1",
    )


def test_other_column_names_are_recognized_or_mapped(tmp_path: Path) -> None:
    names = {"prompt": "question", "chosen": "response_chosen", "rejected": "response_rejected"}
    path = jsonl(tmp_path, [renamed(PAIR, **names), renamed(OTHER, **names)])
    read, told = load_examples(PairKind, path)
    assert told == [
        "read as: pairs (format named-pairs: prompt = question, chosen = response_chosen, rejected = response_rejected)"
    ]
    examples, warnings = load_examples(PairKind, path, columns=names)
    assert (examples[0].prompt, examples[1].rejected) == (PAIR["prompt"], OTHER["rejected"])
    assert (read, warnings) == (examples, [])


def test_a_question_is_not_passed_over_for_an_implicit_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [renamed(PAIR, prompt="question"), renamed(OTHER, prompt="question")])
    assert [pair.prompt for pair in load_examples(PairKind, path)[0]] == [PAIR["prompt"], OTHER["prompt"]]


def test_whole_conversations_need_no_prompt(tmp_path: Path) -> None:
    rows = [
        {"question": "x", "chosen": [user(word), assistant("a")], "rejected": [user(word), assistant("b")]}
        for word in "uv"
    ]
    examples, warnings = load_examples(PairKind, jsonl(tmp_path, rows))
    assert examples[0].prompt == (user("u"),)
    assert warnings == ["columns that are not used: question"]


def test_a_mapping_to_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PAIR, OTHER])
    refusal(lambda: load_examples(PairKind, path, columns={"chosen": "best"}), ExitCode.DATA, "'best'", f"{path}:1")


@pytest.mark.parametrize("label", [True, False, 1, "good"])
def test_unpaired_rows(tmp_path: Path, label: object) -> None:
    path = jsonl(tmp_path, [{"prompt": "p", "completion": "c", "label": label}] * 2)
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "the rows are unpaired rows", f"{path}:1")


@pytest.mark.parametrize(("kind", "row"), [(PairKind, PAIR), (SFTKind, {"prompt": "p", "completion": "c"})])
def test_one_row_is_enough_for_a_trial(tmp_path: Path, kind: Any, row: dict[str, Any]) -> None:
    examples, notes = load_examples(kind, jsonl(tmp_path, [row]))
    assert len(examples) == 1
    assert "there is only 1 row" in notes


def test_the_columns_of_a_single_row_are_checked(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"prompt": "p", "good": "b", "best": "c"}])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "chosen", f"{path}:1")


@pytest.mark.parametrize("comment", ["// rows of May", "# rows", "/* rows */"])
def test_a_comment_in_front_is_one_error(tmp_path: Path, comment: str) -> None:
    for rows in (f"[{json.dumps(PAIR)}]", json.dumps(PAIR), f"{json.dumps(PAIR)}\n{json.dumps(OTHER)}"):
        path = written(tmp_path, f"\n{comment}\n{rows}\n")
        with pytest.raises(UserError) as raised:
            load_examples(PairKind, path)
        (problem,) = raised.value.problems
        assert (problem.what, problem.where) == (
            "the file begins with a comment, which JSON does not have",
            f"{path}:2",
        )


def test_no_row_at_all(tmp_path: Path) -> None:
    path = written(tmp_path, "\n\n")
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "no rows", f"{path}:1")


def test_unknown_columns_are_noted_once_and_known_ones_never(tmp_path: Path) -> None:
    extra = {
        "score": 1,
        "language": "ko",
        "id": 1,
        "source": "x",
        "meta": {},
        "meta_x": 1,
        "group": "g",
        "tools": [],
    }
    _, warnings = load_examples(PairKind, jsonl(tmp_path, [{**PAIR, **extra}, {**OTHER, **extra}]))
    assert warnings == ["columns that are not used: score"]


def test_files_of_one_format_are_chained(tmp_path: Path) -> None:
    packed = written(tmp_path, gzip.compress(json.dumps([OTHER]).encode()), "b.json.gz")
    examples, _ = load_examples(PairKind, [jsonl(tmp_path, [PAIR], "a.jsonl"), packed])
    assert [str(example.origin) for example in examples] == [f"{tmp_path}/a.jsonl:1", f"{packed}:1"]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "a b", "rejected": "a c"},
        {"prompt": "p", "completion": "c"},
        {"prompt": [user("u")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    ],
)
def test_files_of_two_formats(tmp_path: Path, row: dict[str, Any]) -> None:
    paths = [jsonl(tmp_path, [PAIR, OTHER], "a.jsonl"), jsonl(tmp_path, [row], "b.jsonl")]
    refusal(lambda: load_examples(PairKind, paths), ExitCode.DATA, f"{paths[0]}", f"{paths[1]}:1")


def test_bad_lines_and_bad_rows_travel_together(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PAIR, "{", {**OTHER, "chosen": ""}, '{"prompt": NaN}'])
    message = refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"{path}:2", f"{path}:3", f"{path}:4")
    assert message.index(f"{path}:2") < message.index(f"{path}:3") < message.index(f"{path}:4")


def test_stops_after_a_thousand_bad_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PAIR, *[{**OTHER, "chosen": ""}] * 9000])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"stopped after 1,000 bad rows at {path}:1002")


def test_contradictions_and_repeats_through_a_file(tmp_path: Path) -> None:
    turned = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    path = jsonl(tmp_path, [PAIR, OTHER, turned, OTHER])
    parts = [f"{path}:1 at {path}:3", "--data.allow contradictions"]
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, *parts)
    examples, warnings = load_examples(PairKind, path, allow=["contradictions"])
    assert len(examples) == 4
    assert f"({path}:4 = {path}:2)" in warnings[0]
    assert f"({path}:3 = {path}:1)" in warnings[1]
    refusal(lambda: load_examples(PairKind, path, allow=["all"]), ExitCode.CONFIG, "data.allow")


def test_csv_rows_are_pairs(tmp_path: Path) -> None:
    path = written(tmp_path, 'prompt,chosen,rejected,tools\n"한 줄\n두 줄",b,c,\nd,e,f,\n', "rows.csv")
    examples, _ = load_examples(PairKind, path)
    assert [str(example.origin) for example in examples] == [f"{path}:2", f"{path}:4"]
    assert examples[0].prompt == "한 줄\n두 줄"


def test_a_csv_without_its_header_shows_what_it_took_for_one(tmp_path: Path) -> None:
    path = written(tmp_path, "Why?,Because.,No.\nWhat?,That.,This.\nWho?,Me.,You.\n", "rows.csv")
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "the columns are Why?, Because., No.", path)


def test_text_and_messages_do_not_mix(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [PAIR, {**THIRD, "prompt": [user("u")]}])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, f"{path}:1 has text at {path}:2")
