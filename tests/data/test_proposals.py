"""Flags that errors propose: each is followed until the rows are read or none is proposed; no wrong text is read."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.row_files import jsonl, refusal, written

from dpo_lightning.data.formats.base import KindName
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.load import KINDS, load_examples
from dpo_lightning.errors import ExitCode, UserError

DEEPEST = 6
"""Errors in a row after which a walk is a circle."""

QUESTION, GOOD, BAD, ABOUT = (
    "What is asked here, number {}?",
    "the GOOD answer {}",
    "the BAD answer {}",
    "It was built in {}.",
)
ROWS: dict[str, dict[str, Any]] = {
    "another name for the question": {"source": QUESTION, "chosen": GOOD, "rejected": BAD},
    "a title and a post": {"title": QUESTION, "post": ABOUT, "chosen": GOOD, "rejected": BAD},
    "negated names": {"prompt": QUESTION, "non_preferred_output": BAD, "preferred_output": GOOD},
    "a negated name first": {"prompt": QUESTION, "not_chosen": BAD, "chosen_text": GOOD},
    "a negated name of another word": {"prompt": QUESTION, "un_liked": BAD, "liked_text": GOOD},
    "a letter for the winner": {"prompt": QUESTION, "response_a": BAD, "response_b": GOOD, "winner": "b"},
    "an ambiguous label": {"prompt": QUESTION, "response_1": GOOD, "response_2": BAD, "label": 1},
    "text of the question beside it": {"prompt": QUESTION, "context": ABOUT, "chosen": GOOD, "rejected": BAD},
    "an instruction with a context": {"instruction": QUESTION, "context": ABOUT, "chosen": GOOD, "rejected": BAD},
    "ratings": {"prompt": QUESTION, "responses": [BAD, GOOD], "ratings": [1, 5]},
    "the number of the best": {"prompt": QUESTION, "responses": [BAD, GOOD], "best_idx": 1},
    "votes beside a list": {"prompt": QUESTION, "responses": [BAD, GOOD], "votes": [1, 5]},
    "answers that changed places": {"prompt": QUESTION, "chosen": BAD, "rejected": GOOD, "swapped": True},
    "names of models": {"prompt": QUESTION, "gpt4_response": GOOD, "my_model_response": BAD},
    "two questions": {"question": QUESTION, "query": ABOUT, "chosen": GOOD, "rejected": BAD},
    "names of models and a winner": {"prompt": QUESTION, "gpt4": BAD, "llama": GOOD, "winner": "llama"},
    "a conversation": {"conversations": [{"from": "human", "value": QUESTION}], "chosen": GOOD, "rejected": BAD},
    "Korean": {"질의문": QUESTION, "본문": ABOUT, "선택": GOOD, "거절": BAD},
    "a label beside messages": {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}],
        "label": True,
    },
}


def fill(value: Any, number: int) -> Any:
    """A value of `ROWS` with the row's number in its texts."""
    if isinstance(value, str):
        return value.format(number)
    if isinstance(value, list):
        return [fill(item, number) for item in value]
    return {key: fill(item, number) for key, item in value.items()} if isinstance(value, dict) else value


def find_flags(error: UserError) -> list[dict[str, Any]]:
    """The alternatives that an error proposes, each as options of `load_examples`."""
    found = []
    for fix in {error.fix, *(problem.fix for problem in error.problems)}:
        for part in re.split(r",? or |; ", fix):
            words = shlex.split(part) if "--data." in part else []
            options: dict[str, Any] = {"columns": {}, "ignore_columns": []}
            for flag, value in itertools.pairwise(words):
                if flag.startswith("--data.columns.") and value != "NAME":
                    options["columns"][flag.removeprefix("--data.columns.")] = value.rstrip(",")
                elif flag == "--data.ignore_columns":
                    options["ignore_columns"] += value.strip("[]").split(", ")
                elif flag in ("--data.format", "--data.first_wins"):
                    options[flag.removeprefix("--data.")] = value
            found += [options] if options != {"columns": {}, "ignore_columns": []} else []
    return found


def check(examples: list[Any], kind: KindName, row: dict[str, Any], ignored: list[str]) -> None:
    """The first row has its question, and no bad answer where the good one is due."""
    first = examples[0]
    prompt, answers = str(first.prompt), [str(answer) for answer in first.answers]
    for name, text in row.items():
        if name not in ignored and text in (QUESTION, ABOUT):
            assert text.format(0) in prompt, f"{name} is lost"
    if kind in ("pairs", "ranked"):
        assert ["GOOD" in answer for answer in answers] == [True, False]
    if kind == "unpaired":
        assert {"GOOD" in example.answers[0].__str__() for example in examples if example.good} == {True}
    if kind == "sft":
        assert "GOOD" in answers[0] or "BAD" not in str(row)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_every_proposal_ends_right_or_in_a_refusal(tmp_path: Path, name: str, kind: KindName) -> None:
    path = jsonl(tmp_path, [fill(ROWS[name], number) for number in range(4)])
    ends = 0
    waiting: list[dict[str, Any]] = [{"columns": {}, "ignore_columns": []}]
    for options in waiting:
        try:
            examples, _ = load_examples(KINDS[kind], path, **options)
        except UserError as error:
            for more in find_flags(error):
                columns = {**options["columns"], **more["columns"]}
                ignored = [*options["ignore_columns"], *more["ignore_columns"]]
                following = {**options, **more, "columns": columns, "ignore_columns": ignored}
                if len(columns) + len(ignored) > DEEPEST:
                    pytest.fail(f"{error} proposes what was done")
                if following not in waiting:
                    waiting.append(following)
        else:
            ends += 1
            check(examples, kind, ROWS[name], options["ignore_columns"])
    assert ends or kind != "pairs" or name in REFUSED


REFUSED = {
    "a letter for the winner",
    "an ambiguous label",
    "a label beside messages",
    "ratings",
    "a negated name of another word",
    "names of models",
    "the number of the best",
    "votes beside a list",
    "answers that changed places",
}
"""Rows from which no pair is read by any flag that is proposed."""


@pytest.mark.parametrize(
    "first", ["What is 1?,It is 1.,No idea.", "1,2,3", "안녕?,응,아니", "He said that it is late,Yes,No"]
)
def test_a_table_without_a_header(tmp_path: Path, first: str) -> None:
    path = written(tmp_path, f"{first}\nWhy?,So.,No.\n", "rows.csv")
    line = "write a line with the names of the columns before the first row: prompt,chosen,rejected"
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "as a table without a header has them", line)
