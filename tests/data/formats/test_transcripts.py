"""Transcripts: which names of roles begin a turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.format_rows import load
from support.format_texts import BAD, GOOD, Q2, Q
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode


@pytest.mark.parametrize(
    "more",
    [
        "This is the file:\nUser: admin\nSystem: linux\nAI: none",
        "A dialog:\nUser: hi there\nAI: hello you",
        "```\nUser: foo\n```",
        "### Human: is a heading here",
    ],
)
def test_names_of_roles_that_the_transcript_does_not_use_are_text(more: str, tmp_path: Path) -> None:
    """A transcript names each role in one way: its answers may contain the other names."""
    begin = [f"\n\nHuman: {question}\n\nAssistant: " for question in (Q, Q2)]
    rows = [{"chosen": f"{start}{GOOD}\n{more}", "rejected": start + BAD} for start in begin]
    example = load(tmp_path, rows, "pairs")[0][0]
    assert example.prompt == (user(Q),)
    assert example.answers == ((assistant(f"{GOOD}\n{more}"),), (assistant(BAD),))


def test_a_system_turn_comes_first_only(tmp_path: Path) -> None:
    rows = [{"text": f"System: Be brief.\nUser: {question}\nAI: {GOOD}\nSystem: x"} for question in (Q, Q2)]
    example = load(tmp_path, rows, "sft")[0][0]
    assert example.prompt == ({"role": "system", "content": "Be brief."}, user(Q))
    assert example.answers == ((assistant(f"{GOOD}\nSystem: x"),),)


FIRST, LAST = "What is it?", "Why?"
WORDS = [
    ("Q:", "A:"),
    ("Question:", "Answer:"),
    ("### Instruction:\n", "### Response:\n"),
    ("### Human:", "### Bot:"),
    ("User:", "Bot:"),
    ("user:", "assistant:"),
    ("**User:**", "**Assistant:**"),
    ("**Q**:", "**A**:"),
    ("질문:", "답변:"),
    ("사용자:", "어시스턴트:"),
    ("用户：", "助手："),
]
RENDERED = [
    ("<s>[INST] {} [/INST] {} </s>", "[INST] {} [/INST] {}"),
    ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n",) * 2,
    ("<|user|>\n{}</s>\n<|assistant|>\n{}</s>\n",) * 2,
    ("<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>\n",) * 2,
    (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    ),
    ("<\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c>{}<\uff5cend\u2581of\u2581sentence\uff5c>",) * 2,
]


@pytest.mark.parametrize(
    ("first", "then"), [*((f"{asked} {{}}\n\n{answered} {{}}\n",) * 2 for asked, answered in WORDS), *RENDERED]
)
@pytest.mark.parametrize("turns", [1, 2])
def test_other_marks_of_turns(first: str, then: str, turns: int, tmp_path: Path) -> None:
    """Of pairs without a prompt: as one turn of the user, a chat template would write the marks as text."""
    before = first.format(FIRST, "Good.") if turns == 2 else ""
    rest = then if turns == 2 else first
    rows = [
        {name: before + rest.format(f"{LAST} {n}", text) for name, text in (("chosen", GOOD), ("rejected", BAD))}
        for n in range(2)
    ]
    examples, lines = load(tmp_path, rows, "pairs")
    last = (user(FIRST), assistant("Good.")) if turns == 2 else ()
    assert [example.prompt for example in examples] == [(*last, user(f"{LAST} {n}")) for n in range(2)]
    assert examples[0].answers == ((assistant(GOOD),), (assistant(BAD),))
    assert lines == ["read as: pairs of transcripts (such as Human:/Assistant:) (format transcript-pairs)"]


def test_the_system_prompt_of_rendered_turns(tmp_path: Path) -> None:
    start = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST] "
    chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    for before in (start, chat):
        rows = [{"chosen": f"{before}{GOOD}", "rejected": f"{before}{BAD}"}] * 2
        prompt = load(tmp_path, rows, "pairs")[0][0].prompt
        assert prompt == ({"role": "system", "content": "Be brief."}, user("Why?"))


TOOLS = [
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{0}<|im_end|>\n<|im_start|>tool\nres<|im_end|>\n"
    "<|im_start|>assistant\nDone.<|im_end|>",
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{0}<|eom_id|>"
    "<|start_header_id|>ipython<|end_header_id|>\n\nres<|eot_id|>",
    "<|user|>\nhi<|assistant|>\n{0}<|observation|>\nres<|assistant|>\nDone.",
    "[INST] hi [/INST] {0}</s>[TOOL_RESULTS] res [/TOOL_RESULTS] Done.",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSo<|im_end|>\n<|im_start|>tool\nres<|im_end|>\n"
    "<|im_start|>assistant\n{0}<|im_end|>",
]


@pytest.mark.parametrize("text", TOOLS)
def test_turns_of_tools_are_no_part_of_an_answer(text: str, tmp_path: Path) -> None:
    """Nor are they dropped: rows with them are refused, alone and among other transcripts."""
    plain = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
    row, other = ({"chosen": form.format(GOOD), "rejected": form.format(BAD)} for form in (text, plain))
    for rows in ([row, row], [other, other, row]):
        path = jsonl(tmp_path, rows)
        refusal(lambda path=path: load_examples(PairKind, path), ExitCode.DATA, f"{path}:{len(rows)}", "as messages")


@pytest.mark.parametrize(
    "before",
    [
        "<|system|>\n</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n",
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] <<SYS>>\n\n<</SYS>>\n\nWhy? [/INST] ",
    ],
)
def test_an_empty_system_prompt_is_none(before: str, tmp_path: Path) -> None:
    rows = [{"chosen": f"{before}{GOOD}", "rejected": f"{before}{BAD}"}] * 2
    assert load(tmp_path, rows, "pairs")[0][0].prompt == (user("Why?"),)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<|system|>\n</s>\n", "the row has no prompt"),
        ("<|system|>\n</s>\n<|assistant|>\nHi", "turn 1 of 'chosen' is empty"),
    ],
)
def test_an_empty_system_prompt_without_a_question(text: str, what: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"chosen": f"{text}a", "rejected": f"{text}b"}] * 2)
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, what)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Question: Which?\nA: one\nB: two\nAnswer: ", "A: one"),
        ("Q: Why?\nA: ", "Plan A: run.\nA: walk."),
        ("Q: What does Q: mean?\nA: ", "Question, as in Q: and A:"),
        ("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n", "Three.\nAnswer: 3"),
    ],
)
def test_other_words_in_turns_are_text(question: str, answer: str, tmp_path: Path) -> None:
    rows = [{"chosen": question + answer, "rejected": question + BAD}] * 2
    example = load(tmp_path, rows, "pairs")[0][0]
    assert len(example.prompt) == 1
    assert example.answers == ((assistant(answer),), (assistant(BAD),))


def test_marks_beside_a_prompt_are_text(tmp_path: Path) -> None:
    answers = {"chosen": "Q: Why?\nA: So.", "rejected": "Q: Why?\nA: No."}
    for name in ("prompt", "question"):
        examples, _ = load(tmp_path, [{name: Q, **answers}, {name: Q2, **answers}], "pairs")
        assert [(example.prompt, example.chosen) for example in examples] == [
            (Q, answers["chosen"]),
            (Q2, answers["chosen"]),
        ]


def test_a_conversation_that_ends_with_a_question(tmp_path: Path) -> None:
    row = {"chosen": "Q: Why?\nA: So.\nQ: And?", "rejected": "Q: Why?\nA: No."}
    path = jsonl(tmp_path, [row, row])
    refusal(lambda: load_examples(PairKind, path), ExitCode.DATA, "'chosen' ends without the assistant's answer")
