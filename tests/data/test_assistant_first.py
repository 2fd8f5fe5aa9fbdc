"""Conversations that the assistant begins, and those in which there is no turn before the answer."""

from __future__ import annotations

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

HI, U, A, B = assistant("Welcome."), user("Hello."), assistant("Tea?"), assistant("What?")
S = {"role": "system", "content": "Be kind."}
OTHER = {"messages": [user("Hey"), A]}
USER_FIRST = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    + tiny_models.CHATML
)


def test_a_greeting_is_context_and_later_turns_are_learned(tmp_path: Path) -> None:
    rows = [{"messages": [HI, U, A, user("Yes."), B]}, OTHER]
    path = jsonl(tmp_path, rows)
    examples, warnings = load_examples(SFTKind, path)
    assert (examples[0].prompt, examples[0].completion) == ((HI, U), (A, user("Yes."), B))
    what = "conversations that the assistant begins: its first turn is context and not learned"
    assert warnings == [f"{what}: 1 ({path}:1)"]
    tokenizer = tiny_models.make_chat_tokenizer()
    row = Encoder(Renderer(tokenizer), 400).encode(examples)[0]
    assert "Welcome.<|im_end|>" in tokenizer.decode(row.prompt_ids)
    learned = [id_ for id_, own in zip(row.completion.ids, row.completion.scored, strict=True) if own]
    assert tokenizer.decode(learned) == "Tea?<|im_end|>What?<|im_end|>"
    refusal(lambda: load_examples(SFTKind, path, strict=True), ExitCode.DATA, what, f"{path}:1")


def test_what_follows_a_system_message_is_learned(tmp_path: Path) -> None:
    examples, warnings = load_examples(SFTKind, jsonl(tmp_path, [{"messages": [S, HI, U, A]}, OTHER]))
    assert (examples[0].prompt, examples[0].completion) == ((S,), (HI, U, A))
    assert not warnings


ALONE = [
    (SFTKind, OTHER, {"messages": [HI]}),
    (SFTKind, OTHER, {"messages": [{**HI, "train": True}, U, A]}),
    (SFTKind, {"prompt": [U], "completion": [A]}, {"prompt": [], "completion": [A]}),
    (SFTKind, {"prompt": [U], "completion": [A]}, {"prompt": "", "completion": [HI, U, A]}),
    (PairKind, {"chosen": [U, A], "rejected": [U, B]}, {"chosen": [A], "rejected": [B]}),
    (PairKind, {"chosen": [U, A], "rejected": [U, B]}, {"chosen": [HI, U, A], "rejected": [A, U, B]}),
    (
        PairKind,
        {"prompt": [U], "chosen": [A], "rejected": [B]},
        {"prompt": [], "chosen": [A], "rejected": [B]},
    ),
    (RankedKind, {"prompt": [U], "responses": [[A], [B]]}, {"prompt": [], "responses": [[A], [B]]}),
    (
        UnpairedKind,
        {"prompt": [U], "completion": [A], "label": 1},
        {"prompt": [], "completion": [B], "label": 0},
    ),
]


@pytest.mark.parametrize(("read", "good", "row"), ALONE)
def test_an_answer_to_nothing_is_refused_before_a_template_is(tmp_path: Path, read: Any, good: Any, row: Any) -> None:
    path = jsonl(tmp_path, [good, row])
    refusal(
        lambda: load_examples(read, path),
        ExitCode.DATA,
        "there is no turn before",
        f"{path}:2",
        "write the user's turn before it",
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [HI, U], "chosen": [A], "rejected": [B]},
        {"chosen": [HI, U, A], "rejected": [HI, U, B]},
        {"prompt": [HI, U], "chosen": [HI, U, A], "rejected": [HI, U, B]},
    ],
)
def test_pairs_whose_prompt_the_assistant_begins(tmp_path: Path, row: Any) -> None:
    examples, _ = load_examples(PairKind, jsonl(tmp_path, [row, row]))
    assert (examples[0].prompt, examples[0].chosen, examples[0].rejected) == ((HI, U), (A,), (B,))
    tokenizer = tiny_models.make_chat_tokenizer()
    pair = Encoder(Renderer(tokenizer), 400).encode(examples[:1])[0]
    assert tokenizer.decode(pair.chosen.ids) == "Tea?<|im_end|>"
    refusing = Encoder(Renderer(tiny_models.make_chat_tokenizer(template=USER_FIRST)), 400)
    parts = ["roles must alternate", "write a user's turn before the assistant's first", "--data.chat_template FILE"]
    refusal(lambda: refusing.encode(examples[:1]), ExitCode.DATA, *parts)


def test_a_template_that_needs_a_user_first(tmp_path: Path) -> None:
    examples, _ = load_examples(SFTKind, jsonl(tmp_path, [{"messages": [HI, U, A]}, OTHER]))
    encoder = Encoder(Renderer(tiny_models.make_chat_tokenizer(template=USER_FIRST)), 400)
    refusal(
        lambda: encoder.encode(examples),
        ExitCode.DATA,
        "rows.jsonl:1",
        "write a user's turn before the assistant's",
    )
