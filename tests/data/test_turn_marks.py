"""Marks that take turns out of the loss, and keys of messages that nothing reads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.ranked import RankedKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

WRONG, RIGHT = assistant("It is five."), assistant("No, it is four.")
U, V = user("What is 2 plus 2?"), user("Really?")
OTHER = {"messages": [user("Hello"), assistant("Hi")]}
KEYS = ["weight", "train", "trainable", "training", "loss", "loss_mask"]
FORGETFUL = (
    "{% for m in messages %}{% set said = m.content if loop.last else m.content.split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def runs(
    folder: Path, row: dict[str, Any], template: str = tiny_models.CHATML, other: Any = OTHER
) -> list[tuple[bool, str]]:
    """The runs of a demonstration's text, the prompt with the first, and whether each is learned."""
    tokenizer = tiny_models.make_chat_tokenizer(template=template)
    examples, _ = load_examples(SFTKind, jsonl(folder, [row, other]))
    encoded = Encoder(Renderer(tokenizer), 400).encode(examples)[0]
    ids = [*encoded.prompt_ids, *encoded.completion.ids]
    flags = [False] * len(encoded.prompt_ids) + list(encoded.completion.scored)
    borders = [0, *(i for i in range(1, len(ids)) if flags[i] != flags[i - 1]), len(ids)]
    return [(flags[start], tokenizer.decode(ids[start:end])) for start, end in pairwise(borders)]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), (0.0, 1.0)])
def test_a_turn_that_is_marked_out_is_context(tmp_path: Path, key: str, no: Any, yes: Any) -> None:
    row = {"messages": [{**U, key: no}, {**WRONG, key: no}, V, {**RIGHT, key: yes}]}
    (before, context), (learned, answer) = runs(tmp_path, row)
    assert (before, learned, answer) == (False, True, "No, it is four.<|im_end|>")
    assert "It is five.<|im_end|>" in context


def test_a_turn_between_learned_ones_is_context(tmp_path: Path) -> None:
    """In a conversation and in a completion; the template is not given the mark, and unmarked turns are learned."""
    said = [RIGHT, V, {**WRONG, "weight": 0}, V, assistant("Yes.")]
    template = tiny_models.CHATML.replace(
        "{% endfor %}", "{% if message|length > 2 %}{{ 'marked' }}{% endif %}{% endfor %}"
    )
    assert template != tiny_models.CHATML
    for row in ({"messages": [U, *said]}, {"prompt": [U], "completion": said}):
        other = OTHER if "messages" in row else {"prompt": "Hello", "completion": [assistant("Hi")]}
        found = runs(tmp_path, row, template, other)
        assert [text for learned, text in found if learned] == ["No, it is four.<|im_end|>", "Yes.<|im_end|>"]
        assert "It is five.<|im_end|>" in found[2][1]
        assert "marked" not in "".join(text for _, text in found)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({**WRONG, "weight": 0.5}, "has a 'weight' that is neither 0 nor 1"),
        ({**WRONG, "weight": 2}, "neither 0 nor 1"),
        ({**WRONG, "weight": -1}, "neither 0 nor 1"),
        ({**WRONG, "train": "false"}, "has a 'train' that is neither"),
        ({**WRONG, "loss_mask": [0, 1]}, "has a 'loss_mask' that is neither"),
        ({**WRONG, "loss": False, "train": True}, "contradicting marks: train, loss"),
        ({**WRONG, "masked": True}, "the unknown key 'masked'"),
        ({**WRONG, "images": ["a.png"]}, "needs pictures"),
        ({**WRONG, "mask": 0}, "the unknown key 'mask'"),
    ],
)
def test_marks_that_cannot_be_honoured(tmp_path: Path, message: dict[str, Any], what: str) -> None:
    path = jsonl(tmp_path, [OTHER, {"messages": [U, message, V, RIGHT]}])
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, "'messages' message 2", what, f"{path}:2")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_only_the_assistants_turns_are_learned(tmp_path: Path, key: str, role: str) -> None:
    turn = {"role": role, "content": "x"}
    path = jsonl(tmp_path, [OTHER, {"messages": [{**turn, key: 1}, U, RIGHT]}])
    what = f"'messages' message 1 is a {role} message that is marked to be learned ({key})"
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, what, f"{path}:2")
    examples, _ = load_examples(SFTKind, jsonl(tmp_path, [OTHER, {"messages": [{**turn, key: False}, U, RIGHT]}]))
    assert examples[1].prompt == (turn, U)


@pytest.mark.parametrize(
    ("row", "other", "what"),
    [
        ({"messages": [U, {**WRONG, "train": False}]}, OTHER, "every turn of the assistant in 'messages'"),
        ({"messages": [U, {**WRONG, "loss": 0}, V, {**RIGHT, "loss": 0}]}, OTHER, "every turn of the assistant"),
        ({"messages": [WRONG, V, {**RIGHT, "loss": 0}]}, OTHER, "every later turn of the assistant in 'messages'"),
        (
            {"prompt": "p", "completion": [{**WRONG, "train": False}]},
            {"prompt": "q", "completion": [RIGHT]},
            "every turn of the assistant in 'completion'",
        ),
        (
            {"prompt": [U, {**WRONG, "train": True}, V], "completion": [RIGHT]},
            {"prompt": "q", "completion": [RIGHT]},
            "'prompt' message 2 is marked to be learned, but a prompt is never",
        ),
    ],
)
def test_rows_that_would_teach_nothing_or_too_little(tmp_path: Path, row: Any, other: Any, what: str) -> None:
    path = jsonl(tmp_path, [other, row])
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, what, f"{path}:2")


def test_a_template_that_rewrites_all_that_is_learned_is_refused(tmp_path: Path) -> None:
    row = {"messages": [U, assistant("<think>hm</think>Four."), V, {**WRONG, "train": False}]}
    refusal(lambda: runs(tmp_path, row, FORGETFUL), ExitCode.DATA, "rewrites every learned turn", "rows.jsonl:1")


PAIR = {"prompt": [U], "chosen": [RIGHT], "rejected": [WRONG]}
LIST = {"prompt": [U], "responses": [[RIGHT], [WRONG]]}
BAD = {"prompt": [U], "completion": [WRONG], "label": False}
GOOD = {"prompt": [U], "completion": [RIGHT], "label": True}
OUT = {**WRONG, "weight": 0}


@pytest.mark.parametrize(
    ("read", "good", "row"),
    [
        (PairKind, PAIR, {**PAIR, "rejected": [OUT]}),
        (PairKind, PAIR, {**PAIR, "chosen": [{**RIGHT, "train": False}]}),
        (PairKind, PAIR, {**PAIR, "chosen": [{**RIGHT, "loss_mask": 0}, V, RIGHT]}),
        (PairKind, PAIR, {**PAIR, "chosen": [U, OUT, V, RIGHT], "rejected": [U, WRONG]}),
        (RankedKind, LIST, {**LIST, "responses": [[RIGHT], [OUT]]}),
        (UnpairedKind, GOOD, {**BAD, "completion": [OUT]}),
        (UnpairedKind, GOOD, {**BAD, "completion": [OUT, V, RIGHT]}),
        (UnpairedKind, PAIR, {**PAIR, "rejected": [OUT]}),
    ],
)
def test_an_answer_that_is_compared_is_scored_as_a_whole(tmp_path: Path, read: Any, good: Any, row: Any) -> None:
    path = jsonl(tmp_path, [good, row])
    refusal(lambda: load_examples(read, path), ExitCode.DATA, "marked not to be learned", f"{path}:2")


def test_marks_of_what_is_not_scored_anyway_change_nothing(tmp_path: Path) -> None:
    """Turns of a prompt, in a column of its own or shared by the answers, and answers that are marked as learned."""
    plain = [U, WRONG, V]
    marked = [{**U, "weight": 0}, OUT, {**V, "weight": 0}]
    other = {**PAIR, "prompt": [user("Hello")]}
    for rows in (
        [{**PAIR, "prompt": marked, "chosen": [{**RIGHT, "weight": 1}]}, other],
        [
            {"chosen": [*marked, RIGHT], "rejected": [*marked, WRONG]},
            {"chosen": [user("a"), RIGHT], "rejected": [user("a"), WRONG]},
        ],
        [{"prompt": plain, "chosen": [*marked, RIGHT], "rejected": [*marked, WRONG]}, other],
    ):
        example = load_examples(PairKind, jsonl(tmp_path, rows))[0][0]
        assert (example.prompt, example.chosen, example.rejected) == (tuple(plain), (RIGHT,), (WRONG,))


def test_keys_that_hold_nothing_are_no_matter(tmp_path: Path) -> None:
    """As chat APIs write them."""
    said = {**RIGHT, "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    examples, warnings = load_examples(SFTKind, jsonl(tmp_path, [OTHER, {"messages": [U, said]}]))
    assert examples[1].completion == (RIGHT,)
    assert not warnings
