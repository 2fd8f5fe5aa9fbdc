"""Where the prompt ends in pairs that have none of their own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.kinds.implicit_prompts import split_messages, split_strings
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.errors import ExitCode


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Q: a\nA: Yes", "Q: a\nA: No", ("Q: a\nA:", " Yes", " No")),
        ("Q: a\nA: Yellow", "Q: a\nA: Yes", ("Q: a\nA:", " Yellow", " Yes")),
        ("Q: a A: In Peru, yes", "Q: a A: In Peru, no", ("Q: a A:", " In Peru, yes", " In Peru, no")),
        ("Question: a\nAnswer:\nSo", "Question: a\nAnswer:\nNo", ("Question: a\nAnswer:\n", "So", "No")),
        ("Q: a\nA: Plan A: run", "Q: a\nA: Plan A: walk", ("Q: a\nA:", " Plan A: run", " Plan A: walk")),
        ("Q: a\nA: The Input: 1", "Q: a\nA: The Input: 2", ("Q: a\nA:", " The Input: 1", " The Input: 2")),
        (
            "Question: a? A: b, B: c\nAnswer: So",
            "Question: a? A: b, B: c\nAnswer: No",
            ("Question: a? A: b, B: c\nAnswer:", " So", " No"),
        ),
        (
            "Be kind.\nUser: the Answer: to life?\nAssistant: So",
            "Be kind.\nUser: the Answer: to life?\nAssistant: No",
            ("Be kind.\nUser: the Answer: to life?\nAssistant:", " So", " No"),
        ),
        (
            "### Instruction:\nWhat is the Answer: x?\n\n### Response:\nSo",
            "### Instruction:\nWhat is the Answer: x?\n\n### Response:\nNo",
            None,
        ),
        (
            "Question: a?\nA: my Answer: b",
            "Question: a?\nA: my Answer: c",
            ("Question: a?\nA:", " my Answer: b", " my Answer: c"),
        ),
        ("질문: 수도는?\n답변: 서울은", "질문: 수도는?\n답변: 서울이", ("질문: 수도는?\n답변:", " 서울은", " 서울이")),
        ("USER: a ASSISTANT: So", "USER: a ASSISTANT: No", ("USER: a ASSISTANT:", " So", " No")),
        ("### Instruction:\na\n\n### Response:\nSo", "### Instruction:\na\n\n### Response:\nNo", None),
        ("<s>[INST] a [/INST] So", "<s>[INST] a [/INST] No", ("<s>[INST] a [/INST]", " So", " No")),
        (
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nSo",
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nSee",
            ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", "So", "See"),
        ),
        (
            "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nSo",
            "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nNo",
            ("<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n", "So", "No"),
        ),
    ],
)
def test_a_prompt_ends_where_the_last_common_answer_begins(
    chosen: str, rejected: str, expected: tuple[str, str, str] | None
) -> None:
    prompt, first, second = expected or (chosen[:-2], "So", "No")
    assert split_strings(chosen, rejected) == (prompt, first, second)
    assert split_strings(rejected, chosen) == (prompt, second, first)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Paris is the capital of France.", "Paris is a city in Texas."),
        ("The sky is blue.", "The sky is green."),
        ("yes ", "no"),
        ("The answer: yes", "The answer: no"),
        ("f(1)", "f(2)"),
        ("Q: a\nYes", "Q: a\nNo"),
        ("Q: a\nA: Yes", "Q: b\nA: Yes"),
        ("Plan A: run", "Plan A: walk"),
        ("Q: a\nA: b\nQ: c", "Q: a\nA: b\nQ: d"),
        ("abc", "abc def"),
        ("수도는 서울은", "수도는 서울이"),
    ],
)
def test_what_answers_happen_to_begin_with_is_no_prompt(chosen: str, rejected: str) -> None:
    for one, other in ((chosen, rejected), (rejected, chosen)):
        with pytest.raises(RowError, match="the row has no prompt") as caught:
            split_strings(one, other)
        assert "`prompt`" in caught.value.fix


@pytest.mark.parametrize(
    "turns",
    [
        "Be kind.\nQ: a\nA: b\nQ: c\nA: ",
        "Q: a A: b Q: c A: ",
        "Below is an instruction.\n\n### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nc\n\n### Response:\n",
        "Be kind.\nUSER: a ASSISTANT: b</s>USER: c ASSISTANT: ",
        "Be kind.[INST] a [/INST] b </s><s>[INST] c [/INST] ",
        "Be kind.<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n",
    ],
)
def test_several_turns_are_no_prompt(turns: str) -> None:
    """A chat template would write them as one turn of the user."""
    with pytest.raises(RowError, match="both answers begin with several turns") as caught:
        split_strings(f"{turns}So", f"{turns}No")
    assert "messages" in caught.value.fix


@pytest.mark.parametrize(("chosen", "rejected"), [("Q: a\nA: b", "Q: a\nA: "), ("Q: a\nA:", "Q: a\nA: b")])
def test_an_answer_that_is_blank_after_the_prompt(chosen: str, rejected: str) -> None:
    for one, other in ((chosen, rejected), (rejected, chosen)):
        with pytest.raises(RowError, match="blank"):
            split_strings(one, other)


WORDS = st.text(st.sampled_from("ab:A \n가"), min_size=1, max_size=12).filter(str.strip)


@given(WORDS, WORDS)
def test_nothing_is_lost_and_no_answer_is_blank(chosen: str, rejected: str) -> None:
    before = "Q: a\nA:"
    try:
        prompt, first, second = split_strings(before + chosen, before + rejected)
    except RowError:
        return
    assert (prompt + first, prompt + second) == (before + chosen, before + rejected)
    assert prompt.startswith(before)
    assert prompt.rstrip().endswith("A:")
    assert first.strip()
    assert second.strip()


def test_the_cases_without_a_prompt_column(tmp_path: Path) -> None:
    """Transcripts become turns, with the beginnings of answers left to these; other strings are refused."""
    start = "\n\nHuman: Where is Lima?\n\nAssistant: "
    longer = "\n\nHuman: Hello?\n\nAssistant: Hi.\n\nHuman: How long?\n\nAssistant: "
    rows = [
        {"chosen": f"{start}In Peru, on the coast.", "rejected": f"{start}In Peru, I think."},
        {"chosen": f"{longer}Eight minutes.", "rejected": f"{longer}Until done."},
    ]
    examples, _ = load_examples(PairKind, jsonl(tmp_path, rows))
    assert examples[0].prompt == (user("Where is Lima?"),)
    assert examples[0].chosen == (assistant("In Peru, on the coast."),)
    assert examples[1].prompt == (user("Hello?"), assistant("Hi."), user("How long?"))
    texts = [{"chosen": "Paris is in France.", "rejected": "Paris is in Texas."}, {"chosen": "Yes.", "rejected": "No."}]
    for reader in (PairKind, UnpairedKind):
        path = jsonl(tmp_path, texts)
        call = partial(load_examples, reader, path)
        refusal(call, ExitCode.DATA, "the row has no prompt", "rows.jsonl:1", "rows.jsonl:2", "Paris is in", "`prompt`")


def test_prompts_that_are_split_off_are_said_with_an_example(tmp_path: Path) -> None:
    rows = [{"chosen": f"Hi.\nQ: {n} A: Yes", "rejected": f"Hi.\nQ: {n} A: No"} for n in range(3)]
    path = jsonl(tmp_path, rows)
    examples, warnings = load_examples(PairKind, path)
    assert [example.prompt for example in examples] == [f"Hi.\nQ: {n} A:" for n in range(3)]
    shown = "'Hi.\\nQ: 0 A:'"
    assert warnings == [f"prompts that are the turns with which both answers begin: 3 (first: {shown} at {path}:1)"]


A, B, C = assistant("a"), assistant("b"), assistant("c")
U, V = user("u"), user("v")


@pytest.mark.parametrize(
    ("chosen", "rejected", "turns"),
    [
        ((U, A), (U, B), 1),
        ((U, A, V, B), (U, A, V, C), 3),
        ((U, A), (U, A, V, B), 1),
        ((A,), (B,), 0),
        ((U, A, B), (U, A, C), 2),
    ],
)
def test_messages(chosen: tuple[dict[str, str], ...], rejected: tuple[dict[str, str], ...], turns: int) -> None:
    assert split_messages(chosen, rejected) == (chosen[:turns], chosen[turns:], rejected[turns:])


S = {"role": "system", "content": "s"}
DIFFERENT = {"chosen": [U, A], "rejected": [V, B]}


@pytest.mark.parametrize(
    "row",
    [
        DIFFERENT,
        {"chosen": [S, U, A], "rejected": [S, V, B]},
        {**DIFFERENT, "system": "s"},
        {"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: v\n\nAssistant: b"},
    ],
)
def test_answers_to_different_questions_are_no_pair(tmp_path: Path, row: dict[str, object]) -> None:
    """A system message in front of both is no question that they share."""
    path = jsonl(tmp_path, [row])
    refusal(partial(load_examples, PairKind, path), ExitCode.DATA, "'chosen' and 'rejected' answer different questions")


@pytest.mark.parametrize(
    ("chosen", "rejected", "noted"),
    [
        ((U, A, U, B), (U, A, V, C), True),
        ((S, U, A, U, B), (S, U, A, V, C), True),
        ((U, A, U, C), (U, B, V, C), False),
        ((S, U, A), (S, U, B), False),
        ((U, A, V, B), (U, A, V, C), False),
    ],
)
def test_a_later_question_that_differs_is_noted(
    tmp_path: Path, chosen: tuple[dict[str, str], ...], rejected: tuple[dict[str, str], ...], noted: bool
) -> None:
    """Conversations with a model may go apart once it has answered; before that, its answers are to other questions."""
    path = jsonl(tmp_path, [{"chosen": chosen, "rejected": rejected}])
    assert any("differ in a question already" in line for line in load_examples(PairKind, path)[1]) == noted
