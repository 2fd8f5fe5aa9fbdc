"""Messages as other tools write them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.formats.turns import parse_messages_text, unwrap_answer
from dpo_lightning.data.kinds.fields import parse_text
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.kinds.unpaired import UnpairedKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.errors import ExitCode

CALL = {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"from": "human", "value": "a"}, user("a")),
        ({"from": "gpt", "value": "a"}, assistant("a")),
        ({"from": "system", "value": "a"}, {"role": "system", "content": "a"}),
        ({"role": "User", "content": "a"}, user("a")),
        ({"role": "Chatbot", "message": None, "content": "a"}, assistant("a")),
        ({"role": "model", "parts": [{"text": "a"}, {"text": "b"}]}, assistant("ab")),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, user("a")),
        ({"role": "user", "content": [{"text": "a"}, "b"]}, user("ab")),
        ({"role": "prompter", "content": "a"}, user("a")),
        ({"from": "observation", "value": "1"}, {"role": "tool", "content": "1"}),
        (
            {"from": "function_call", "value": json.dumps(CALL)},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
        ),
    ],
)
def test_other_names(given: dict[str, Any], message: dict[str, Any]) -> None:
    assert parse_text([given], "'x'") == (message,)
    assert parse_text(given, "'x'") == (message,)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "needs pictures, and this package trains text",
        ),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "a content part that is not text"),
        ({"from": "function_call", "value": "not JSON"}, "a function call without a name"),
        ({"from": "function_call", "value": "3"}, "a function call without a name"),
        ({"from": "nobody", "value": "a"}, 'the unknown role "nobody"'),
        ({"from": "human"}, "has no content"),
    ],
)
def test_what_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_text([given], "'x'")
    assert what in caught.value.what


def test_json_text_is_decoded_where_it_is_a_list_of_messages() -> None:
    turns = [user("a [b]"), assistant("c")]
    assert parse_messages_text(" " + json.dumps(turns, indent=1), "'x'") == turns
    assert parse_text(json.dumps(turns), "'x'", decode=True) == tuple(turns)
    assert parse_text(json.dumps(turns), "'x'") == json.dumps(turns)
    for text in ("", "a", "[1, 2]", "[]", '[{"name": "x"}]', '{"role": "user"}', '[{"role": "user"'):
        assert parse_messages_text(text, "'x'") is None


def test_what_python_prints_is_refused_with_the_way() -> None:
    with pytest.raises(RowError) as caught:
        parse_text(str([user("a"), assistant("c")]), "'x'", decode=True)
    assert "as Python prints it" in caught.value.what
    assert "json.dumps" in caught.value.fix


def test_an_answer_may_be_an_object_with_one_text() -> None:
    assert unwrap_answer({"text": "a", "model": "m", "score": 1}) == "a"
    for value in ("a", [assistant("a")], assistant("a"), {"from": "gpt", "text": "a"}, {"text": 3}, {}, None):
        assert unwrap_answer(value) == value
    assert unwrap_answer({"text": "a", "output": "b"}) == {"text": "a", "output": "b"}


@pytest.mark.parametrize(
    ("kind", "format", "more"),
    [
        (SFTKind, "sharegpt", {}),
        (PairKind, "sharegpt-pairs", {"chosen": "b", "rejected": "c"}),
        (UnpairedKind, "messages-label", {"label": True}),
    ],
)
def test_an_unknown_role_of_a_conversation_is_named(
    tmp_path: Path, kind: Any, format: str, more: dict[str, Any]
) -> None:
    answer = [] if kind is PairKind else [{"from": "gpt", "value": "a"}]
    rows = [
        {"conversations": [{"from": who, "value": "p"}, {"from": "human", "value": "q"}, *answer], **more}
        for who in ("system", "martian")
    ]
    call = partial(load_examples, kind, jsonl(tmp_path, rows), format=format)
    refusal(call, ExitCode.DATA, "'conversations' message 1 has the unknown role \"martian\" at", "rows.jsonl:2")
