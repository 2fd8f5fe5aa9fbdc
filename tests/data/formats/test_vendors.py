"""Files of training services and annotation tools: what their own fields mean, and rows that lack them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from support.format_rows import BY_NAME, SAMPLES, load, remove, replace, show
from support.format_texts import BAD, BAD2, GOOD, GOOD2, PAIR_ROWS, Q2, SYSTEM, Q, blocks, parts
from support.row_files import refusal

from dpo_lightning.data.formats.annotations import DISAGREE, NOT_JUDGED
from dpo_lightning.data.formats.verdicts import TIE
from dpo_lightning.errors import ExitCode

CANDIDATE = ["messages", 1, "candidates", 0]


@pytest.mark.parametrize(
    ("name", "path", "value", "part"),
    [
        ("vertex", ["contents"], None, "'contents' is null"),
        ("vertex", ["contents", 0, "parts"], [{"inlineData": {"mimeType": "image/png"}}], "contents"),
        ("vertex", ["systemInstruction"], {"text": SYSTEM}, "'systemInstruction' has no 'parts'"),
        ("vertex", ["systemInstruction", "parts"], None, "'systemInstruction.parts' is not a list"),
        ("vertex", ["systemInstruction"], 7, "'systemInstruction' is neither text nor an object"),
        ("vertex-preference", ["completions", 0, "score"], "good", "'score' of completions 1 is not a number"),
        ("vertex-preference", ["completions", 1], {"score": 1}, "'completions 2' has no 'completion'"),
        ("bedrock", ["system", 0], {"image": "x"}, "'system' needs pictures"),
        ("bedrock", ["messages"], None, "'messages' is null"),
        ("bedrock-preference", ["messages", 1, "candidates"], None, "'candidates' is not a list"),
        ("bedrock-preference", CANDIDATE, {"content": []}, "no 'preferenceLabel'"),
        (
            "bedrock-preference",
            [*CANDIDATE, "preferenceLabel"],
            "preferred",
            "preferred, preferred",
        ),
        ("bedrock-preference", [*CANDIDATE, "preferenceLabel"], "liked", "liked, preferred"),
        ("bedrock-preference", [*CANDIDATE, "content"], [{"image": {}}], "'candidates' 1"),
        ("bedrock-preference", ["messages"], [], "'the last of messages' is not an object"),
        ("nemo", ["mask"], "Assistant", "'mask' is not User"),
        ("nemo", ["conversations", 1, "label"], "quality:4", "'conversations' 2 has a 'label'"),
        ("nemo", ["conversations"], None, "'conversations' is not a list"),
        ("alpaca-pairs", ["output"], [GOOD], "'output' has 1 answers"),
        ("alpaca-pairs", ["output"], [GOOD, None], "'output' is null"),
        ("alpaca-pairs", ["instruction"], None, "'instruction' is null"),
        ("dolly", ["response"], None, "'response' is null"),
        ("dolly", ["context"], 7, "'context' is a number"),
        ("label-studio", ["data"], "text", "'data' is not an object"),
        ("label-studio", ["data"], {"prompt": Q, "answer": GOOD}, "'data' has no question with two answers"),
        ("label-studio", ["annotations", 0], {"id": 1}, "'annotations 1' has no 'result'"),
        ("label-studio", ["annotations", 0, "result", 0, "value", "selected"], None, "has no verdict"),
        ("label-studio", ["annotations", 0, "result", 0, "value", "selected"], "up", "does not name"),
        ("argilla", ["fields"], None, "'fields' is not an object"),
        ("argilla", ["responses"], 7, "'responses' is neither a list nor an object"),
        ("argilla", ["responses", "preference"], "response_1", "'responses.preference' is not a list"),
        ("argilla", ["responses", "preference", 0], {"user_id": "u"}, "'responses.preference' has no 'value'"),
        ("argilla", ["responses", "preference", 0, "value"], "the first, I think", "does not name"),
        ("argilla", ["responses"], {"a": [{"value": "x"}], "b": [{"value": "y"}]}, "'responses' has several questions"),
    ],
)
def test_bad_rows(name: str, path: list[Any], value: Any, part: str, tmp_path: Path) -> None:
    first, *others = SAMPLES[name].rows
    rows = [*others, others[0], replace(first, path, value)]
    refusal(lambda: load(tmp_path, rows, BY_NAME[name].kind, format=name), ExitCode.DATA, part)


@pytest.mark.parametrize("name", ["vertex", "vertex-preference", "bedrock-preference"])
def test_rows_without_a_system_message(name: str, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if not key.startswith("system")} for row in SAMPLES[name].rows]
    example = load(tmp_path, rows, BY_NAME[name].kind)[0][0]
    assert show(example.prompt) == [("user", Q)]
    assert [show(text) for text in example.answers] == list(SAMPLES[name].answers)


def test_rows_of_bedrock_without_a_system_message_are_our_own(tmp_path: Path) -> None:
    rows = [{"messages": row["messages"]} for row in SAMPLES["bedrock"].rows]
    assert show(load(tmp_path, rows, "sft")[0][0].answers[0]) == [("assistant", GOOD)]


@pytest.mark.parametrize("kind", ["sft", "ranked", "unpaired"])
def test_candidates_are_never_demonstrations(kind: Any, tmp_path: Path) -> None:
    rows = SAMPLES["bedrock-preference"].rows
    if kind == "sft":
        refusal(lambda: load(tmp_path, rows, kind), ExitCode.DATA, "Bedrock preferences", "configs/dpo.yaml")
        refusal(lambda: load(tmp_path, rows, kind, format="sft"), ExitCode.DATA)
    else:
        assert show(load(tmp_path, rows, kind)[0][0].answers[0]) == [("assistant", GOOD)]


def test_names_of_roles_of_other_vendors(tmp_path: Path) -> None:
    roles = ("System", "User", "Chatbot")
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, (SYSTEM, *texts), strict=True)]}
        for texts in ((Q, GOOD), (Q2, GOOD2))
    ]
    example = load(tmp_path, rows, "sft")[0][0]
    assert show(example.prompt) == [("system", SYSTEM), ("user", Q)]


def annotate(*sides: str, **changes: Any) -> dict[str, Any]:
    """A task of Label Studio with one annotation for each side."""
    task = dict(SAMPLES["label-studio"].rows[0])
    task["annotations"] = [replace(task["annotations"][0], ["result", 0, "value", "selected"], side) for side in sides]
    return {**task, **changes}


def test_annotators_must_agree(tmp_path: Path) -> None:
    rows = [annotate("right", "right"), annotate("left", "right"), annotate(), annotate("left", "left")]
    rows[3]["data"] = {"prompt": Q2, "answer1": GOOD2, "answer2": BAD2}
    examples, lines = load(tmp_path, rows, "pairs")
    assert [example.answers for example in examples] == [(GOOD, BAD), (GOOD2, BAD2)]
    assert [line.partition(":")[0] for line in lines[1:3]] == [DISAGREE, NOT_JUDGED]


def test_cancelled_annotations_do_not_count(tmp_path: Path) -> None:
    row = replace(annotate("left", "right"), ["annotations", 0, "was_cancelled"], True)
    assert load(tmp_path, [row, row], "pairs")[0][0].answers == (GOOD, BAD)


@pytest.mark.parametrize("shown", [["answer2", "answer1"], "answer2,answer1"])
def test_the_sides_are_those_that_were_shown(shown: Any, tmp_path: Path) -> None:
    """Left is the first that the annotator saw, whatever the order of the data."""
    row = replace(annotate("left"), ["annotations", 0, "result", 0, "to_name"], shown)
    other = remove(annotate("right"), ["annotations", 0, "result", 0, "to_name"])
    assert [example.answers for example in load(tmp_path, [row, other], "pairs")[0]] == [(GOOD, BAD)] * 2


def record(*responses: dict[str, Any]) -> dict[str, Any]:
    """A record of Argilla with answers to `preference`."""
    return {**SAMPLES["argilla"].rows[0], "responses": {"preference": list(responses)}}


def test_responses_that_were_not_submitted_do_not_count(tmp_path: Path) -> None:
    submitted = {"value": "response_1", "status": "submitted"}
    drafts = [{"value": "response_2", "status": status} for status in ("draft", "discarded")]
    rows = [record(submitted, *drafts), record(*drafts), record({"value": "tie"})]
    examples, lines = load(tmp_path, rows, "pairs")
    assert [example.answers for example in examples] == [(GOOD, BAD)]
    assert [line.partition(":")[0] for line in lines[1:3]] == [NOT_JUDGED, TIE]


def test_numbers_of_argilla_are_as_unclear_as_those_of_columns(tmp_path: Path) -> None:
    rows = [record({"value": 0}), record({"value": 0})]
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "does not name", "--data.first_wins")
    assert load(tmp_path, rows, "pairs", first_wins=0)[0][0].answers == (GOOD, BAD)
    assert load(tmp_path, rows, "pairs", first_wins=1)[0][0].answers == (BAD, GOOD)


def write_gemini(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    items = [{"score": 1.0, "completion": parts("model", good)}, {"score": 0.0, "completion": parts("model", bad)}]
    return {"contents": [parts("user", prompt)], "completions": items[::-1] if swap else items}


def write_nova(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    items = [
        {"content": [{"text": text}], "preferenceLabel": label}
        for text, label in ((good, "preferred"), (bad, "non-preferred"))
    ]
    last = {"role": "assistant", "candidates": items[::-1] if swap else items}
    return {"messages": [blocks("user", prompt), last]}


def write_label_studio(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    first, second = (bad, good) if swap else (good, bad)
    return annotate(("left", "right")[swap], data={"prompt": prompt, "answer1": first, "answer2": second})


def write_argilla(prompt: str, good: str, bad: str, swap: bool) -> dict[str, Any]:
    first, second = (bad, good) if swap else (good, bad)
    fields = {"prompt": prompt, "response_1": first, "response_2": second}
    return {**record({"value": ("response_1", "response_2")[swap]}), "fields": fields}


WRITERS: dict[str, Callable[[str, str, str, bool], dict[str, Any]]] = {
    "Gemini": write_gemini,
    "Nova": write_nova,
    "Label Studio": write_label_studio,
    "Argilla": write_argilla,
    "LLaMA-Factory": lambda prompt, good, bad, _: {"instruction": prompt, "input": "", "output": [good, bad]},
}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40, deadline=None)
@given(rows=PAIR_ROWS)
def test_pairs_that_are_written_are_read_back(
    name: str, rows: list[tuple[str, str, str, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    examples, _ = load(tmp_path_factory.getbasetemp(), [WRITERS[name](*row) for row in rows], "pairs")
    found = [[show(text) for text in (example.prompt, *example.answers)] for example in examples]
    texts = [tuple(text if isinstance(text, str) else text[0][1] for text in row) for row in found]
    assert texts == [row[:3] for row in rows]
