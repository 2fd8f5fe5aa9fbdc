"""Markup of other templates, placeholders, carriage returns and copies of the prompt: counted, and strictly refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.prompts import PromptKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

PLAIN = {"prompt": "What is the largest planet?", "chosen": "Jupiter.", "rejected": "Mars."}
OTHER = {"prompt": "Who wrote Hamlet?", "chosen": "Shakespeare.", "rejected": "Nobody."}


@pytest.mark.parametrize(
    ("shown", "changes"),
    [
        ("[INST]", {"prompt": "[INST] What? [/INST]"}),
        ("[INST]", {"prompt": "<<SYS>>\nBe brief.\n<</SYS>>\n\nWhat?"}),
        ("<|im_start|>", {"prompt": "<|im_start|>user\nWhat?<|im_end|>"}),
        ("<|eot_id|>", {"chosen": "Jupiter.<|eot_id|>"}),
        ("<start_of_turn>", {"prompt": "<start_of_turn>user\nWhat?<end_of_turn>"}),
        ("<|user|>", {"rejected": "Mars.<|endoftext|>"}),
        ("<extra_id_1>", {"prompt": "<extra_id_1>User\nWhat?"}),
        ("</s>", {"chosen": "Jupiter.</s>", "rejected": "Mars.</s>"}),
        ("</s>", {"prompt": "<s>What?"}),
        ("### Instruction:", {"prompt": "### Instruction:\nWhat?\n\n### Response:\n"}),
        ("### Instruction:", {"prompt": "### Question: What? ### Answer: "}),
        ("Human: ... Assistant:", {"prompt": "What?\n\nAssistant:"}),
        ("{{name}}", {"chosen": "Dear {{customer_name}}, it is Jupiter."}),
        ("{{name}}", {"chosen": "{{ 이름 }} 님, 목성입니다."}),
    ],
)
def test_markup_is_counted(tmp_path: Path, shown: str, changes: dict[str, str]) -> None:
    path = jsonl(tmp_path, [OTHER, {**PLAIN, **changes}])
    note = f"rows with markup of a template ({shown}): 1 ({path}:2)"
    assert note in load_examples(PairKind, path)[1]
    refusal(lambda: load_examples(PairKind, path, strict=True), ExitCode.DATA, f"({shown})", f"{path}:2")


@pytest.mark.parametrize(
    "text",
    [
        "Use `</s>` as the end token, `<s>` as the start.",
        "```jinja\nHello {{name}}\n[INST]\n```",
        "Is 3 < s > 2?",
        "## Results\n\nThe user: nobody.",
        "# Instruction\n\nMix well.",
        "[INSTALL] the package",
        "A human: being.",
        "{{}} and { {x} }",
        "<|>",
    ],
)
def test_texts_that_only_look_like_markup(tmp_path: Path, text: str) -> None:
    assert load_examples(PairKind, jsonl(tmp_path, [OTHER, {**PLAIN, "chosen": text}]))[1] == []


def test_messages_are_searched(tmp_path: Path) -> None:
    rows = [{"messages": [user("[INST] What? [/INST]"), assistant("Jupiter.")]}] * 2
    assert any("([INST]): 2" in line for line in load_examples(SFTKind, jsonl(tmp_path, rows))[1])


def test_line_ends_of_one_answer(tmp_path: Path) -> None:
    rows = [{**PLAIN, "chosen": "Jupiter.\r\nYes."}, {**OTHER, "chosen": "A\r\nB", "rejected": "C\r\nD"}]
    path = jsonl(tmp_path, rows)
    assert load_examples(PairKind, path)[1] == [f"pairs in which only one answer has carriage returns: 1 ({path}:1)"]


def test_answers_that_begin_with_the_prompt(tmp_path: Path) -> None:
    copied = {name: f"{PLAIN['prompt']}\n{PLAIN[name]}" for name in ("chosen", "rejected")}
    path = jsonl(tmp_path, [{**PLAIN, **copied}, {**OTHER, "chosen": f"{OTHER['prompt']} Shakespeare."}])
    assert load_examples(PairKind, path)[1] == [f"rows whose answers begin with a copy of the prompt: 1 ({path}:1)"]


def test_prompts_alone_copy_nothing(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"prompt": PLAIN["prompt"]}, {"prompt": OTHER["prompt"]}])
    assert load_examples(PromptKind, path)[1] == []
