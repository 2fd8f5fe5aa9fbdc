"""Values into texts: which messages are taken, and what the others are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.row_files import assistant, user

from dpo_lightning.data.kinds.fields import check_answer, parse_group, parse_text
from dpo_lightning.data.kinds.tool_calls import parse_tools
from dpo_lightning.data.readers.bad_rows import RowError

CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
TOOL = {"name": "f", "parameters": {"type": "object"}}


@pytest.mark.parametrize("role", ["system", "developer", "tool"])
def test_some_roles_may_be_silent(role: str) -> None:
    message = {"role": role, "content": ""}
    assert parse_text([message], "'x'") == (message,)


def test_strings_and_messages_are_kept_as_they_are() -> None:
    assert parse_text(" a \n", "'x'") == " a \n"
    turns = [
        user(" hi "),
        CALL,
        {**CALL, "content": ""},
        {"role": "tool", "content": "1", "name": "f"},
        assistant("x"),
    ]
    assert parse_text(turns, "'x'") == tuple(turns)


def test_null_keys_are_absent_keys() -> None:
    assert parse_text([{**user("a"), "tool_calls": None, "name": None}], "'x'") == (user("a"),)
    assert parse_text([{**CALL, "content": None}], "'x'") == ({**CALL, "content": None},)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "'x' is null"),
        (3, "'x' is a number"),
        (2.5, "'x' is a number"),
        (True, "'x' is a boolean"),
        ({"text": "a"}, "'x' is an object"),
        (b"x", "'x' is binary data"),
        (["text"], "'x' message 1 is text"),
        ([user("a"), None], "'x' message 2 is null"),
        ([{"text": "a"}], "'x' message 1 has no role"),
        ([{"role": "wizard", "content": "a"}], "'x' message 1 has the unknown role \"wizard\""),
        ([{"role": ["user"], "content": "a"}], "unknown role"),
        ([{"role": None, "content": "a"}], "unknown role null"),
        ([{"role": "user"}], "'x' message 1 has no content"),
        ([{"role": "assistant", "content": None}], "has no content"),
        ([{"role": "assistant", "tool_calls": []}], "has no content"),
        ([{"role": "user", "content": [{"type": "image", "image": "a"}]}], "message 1 needs pictures"),
        ([user("")], "has no text as content"),
        ([assistant(" \n")], "has only white space as content"),
        ([{**CALL, "role": "user"}], "a user message with tool_calls"),
        ([{**CALL, "tool_calls": "f()"}], "tool_calls that are not a list"),
        ([{**CALL, "tool_calls": [{}]}], "tool_calls that are not a list"),
    ],
)
def test_what_is_no_text(value: Any, what: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_text(value, "'x'")
    assert what in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'x' is empty"),
        ((), "'x' is empty"),
        (" \n", "'x' is only white space"),
        ((assistant("a"), user("b")), "'x' ends with a user message"),
    ],
)
def test_what_is_no_answer(text: Any, what: str) -> None:
    with pytest.raises(RowError) as caught:
        check_answer(text, "'x'")
    assert what in caught.value.what


def test_tools_as_a_list_or_as_its_json() -> None:
    assert parse_tools([TOOL]) == parse_tools(json.dumps([TOOL])) == (TOOL,)
    assert parse_tools(None) == parse_tools("") == parse_tools([]) == parse_tools("[]") == ()


@pytest.mark.parametrize("value", ["f()", "{}", "[1]", 3, [1], [{}], {"name": "f"}, "[" * 100_000])
def test_what_is_no_tools(value: Any) -> None:
    with pytest.raises(RowError, match="tools is"):
        parse_tools(value)


def test_groups() -> None:
    assert [parse_group(value) for value in ("가", 3, None, "")] == ["가", "3", "", ""]
    for value in (True, 1.5, ["a"]):
        with pytest.raises(RowError, match="group is"):
            parse_group(value)
