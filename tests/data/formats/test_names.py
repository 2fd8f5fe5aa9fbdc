"""Names and values in other words and languages: inputs, options, earlier steps, notes about answers, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.format_rows import load
from support.format_texts import BAD, GOOD, Q2, Q
from support.row_files import refusal

from dpo_lightning.errors import ExitCode

TEXT = "Text that matters."


@pytest.mark.parametrize(
    ("question", "given", "answer"),
    [("지시", "입력", "출력"), ("指令", "输入", "输出"), ("指示", "入力", "出力")],
)
def test_an_input_beside_an_instruction_is_never_lost(question: str, given: str, answer: str, tmp_path: Path) -> None:
    rows = [{question: text, given: "본문", answer: GOOD} for text in (Q, Q2)]
    refusal(lambda: load(tmp_path, rows, "sft"), ExitCode.DATA, f"'{given}' has text that is not read", "columns.input")
    example = load(tmp_path, rows, "sft", columns={"input": given})[0][0]
    assert (example.prompt, example.answers) == (f"{Q}\n\n본문", (GOOD,))


@pytest.mark.parametrize("name", ["initial_reason_steps", "prefix", "partial_response", "persona", "schema"])
def test_text_before_the_answer_that_is_not_read(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": text, name: TEXT, "chosen": GOOD, "rejected": BAD} for text in (Q, Q2)]
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, f"'{name}' has text that is not read")


@pytest.mark.parametrize(
    "more",
    [
        {"choices": ["one", "two"]},
        {"options": {"A": "one", "B": "two"}},
        {"option_a": "one", "option_b": "two"},
        {"A": "x", "B": "y"},
    ],
)
def test_options_of_a_question_are_never_lost(more: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"question": text, **more, "answer": "one"} for text in (Q, Q2)]
    refusal(lambda: load(tmp_path, rows, "sft"), ExitCode.DATA, "has text that is not read")


@pytest.mark.parametrize("name", ["rationales", "explanations", "critiques"])
def test_texts_about_the_answers_are_no_context(name: str, tmp_path: Path) -> None:
    rows = [
        {"instruction": text, "generations": [BAD, GOOD], "ratings": [1, 5], name: [TEXT, TEXT]} for text in (Q, Q2)
    ]
    assert load(tmp_path, rows, "ranked")[0][0].answers == (GOOD, BAD)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("chosen", "rejected"),
        ("Desirable", "undesirable"),
        ("like", "dislike"),
        ("thumbs_up", "thumbs_down"),
        ("👍", "👎"),
        ("좋음", "나쁨"),
    ],
)
def test_words_of_labels(good: str, bad: str, tmp_path: Path) -> None:
    for names in (("prompt", "completion", "label"), ("question", "answer", "feedback")):
        rows = [dict(zip(names, values, strict=True)) for values in ((Q, GOOD, good), (Q2, BAD, bad))]
        assert [example.good for example in load(tmp_path, rows, "unpaired")[0]] == [True, False]


def test_a_label_of_unknown_values_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": GOOD, "label": "toxic"} for text in (Q, Q2)]
    refusal(lambda: load(tmp_path, rows, "unpaired"), ExitCode.DATA, "write true or false into 'label'", "toxic")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")],
)
def test_scores_that_contradict_the_order_are_noted(chosen: str, rejected: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": Q, "chosen": GOOD, "rejected": BAD, chosen: 1, rejected: 4},
        {"prompt": Q2, "chosen": GOOD, "rejected": BAD, chosen: 4, rejected: 4},
    ]
    lines = load(tmp_path, rows, "pairs")[1]
    assert any(f"pairs whose {chosen} is below {rejected}: 1" in line for line in lines)
    refusal(lambda: load(tmp_path, rows, "pairs", strict=True), ExitCode.DATA, chosen)


@pytest.mark.parametrize(
    ("question", "chosen", "rejected"),
    [
        ("query", "response", "rejected_response"),
        ("prompt", "answer", "bad_answer"),
        ("prompt", "more_preferred_response", "less_preferred_response"),
        ("prompt", "win", "lose"),
        ("问题", "好的回答", "差的回答"),
        ("指令", "选择的回答", "拒绝的回答"),
        ("câu hỏi", "câu trả lời tốt", "câu trả lời xấu"),
        ("pergunta", "resposta_boa", "resposta_ruim"),
    ],
)
def test_names_of_the_better_and_the_worse_answer(question: str, chosen: str, rejected: str, tmp_path: Path) -> None:
    for names in ((question, chosen, rejected), (rejected, question, chosen)):
        texts = {question: Q, chosen: GOOD, rejected: BAD}
        rows = [{name: texts[name] for name in names}, {**{name: texts[name] for name in names}, question: Q2}]
        example = load(tmp_path, rows, "pairs")[0][0]
        assert (example.prompt, example.answers) == (Q, (GOOD, BAD))


@pytest.mark.parametrize("plain", ["answer", "reference_response", "output"])
def test_an_answer_of_another_name_is_not_the_better_one(plain: str, tmp_path: Path) -> None:
    rows = [{"prompt": text, plain: GOOD, "rejected_response": BAD} for text in (Q, Q2)]
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "chosen")


def test_options_beside_letters_are_not_lost(tmp_path: Path) -> None:
    rows = [{"prompt": text, "choice_a": TEXT, "choice_b": "Other", "chosen": "A", "rejected": "B"} for text in (Q, Q2)]
    refusal(lambda: load(tmp_path, rows, "pairs"), ExitCode.DATA, "'choice_a' has text that is not read")
