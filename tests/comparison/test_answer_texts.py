"""Texts of prompts, and the marks of what differs between two answers."""

import pytest

from dpo_lightning.comparison.texts import as_messages, count_equal, format_prompt, mark_differences

USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function", "function": {"name": "날씨", "arguments": {"x": 1}}}
CALLED = '[{"function": {"arguments": {"x": 1}, "name": "날씨"}, "type": "function"}]'


def marked(one, other):
    """Both answers with what differs in brackets."""
    return ["".join(f"[{text}]" if mark else text for text, mark in parts) for parts in mark_differences(one, other)]


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("The sea is blue.", "The sea is very blue!", ["The sea is blue[.]", "The sea is [very ]blue[!]"]),
        ("수도는 서울입니다.", "수도는 부산입니다.", ["수도는 [서울입니다].", "수도는 [부산입니다]."]),
        ("首都は東京です", "首都は京都です", ["首都は[東]京です", "首都は京[都]です"]),
        ("a\n    b", "a\n  b", ["a[\n    ]b", "a[\n  ]b"]),
        ("", "a", ["", "[a]"]),
        ("same", "same", ["same", "same"]),
    ],
)
def test_what_differs_is_marked(one, other, shown):
    assert marked(one, other) == shown


def test_nothing_is_lost_or_changed():
    """White space, code and marks of the other direction included."""
    one, other = "```py\n\tif  x:\r\n```  \u202e한\u1112\u1161\u11ab <b>", "```py\nif x:\n``` e\u0301 \ud7a3 &lt;"
    assert ["".join(part.text for part in parts) for parts in mark_differences(one, other)] == [one, other]


def test_long_answers_are_left_unmarked():
    """Comparing them word by word would take hours."""
    one = "a b " * 20_000
    assert mark_differences(one, one + "c") == ([(one, False)], [(one + "c", False)])


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Hi", "Hi"),
        ([USER], "Hi"),
        ([{"role": "system", "content": "Be short."}, USER], "system: Be short.\n\nuser: Hi"),
        ([{"role": "user", "content": None}, USER], "user: \n\nuser: Hi"),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}], f"user: Hi\n\nassistant: {CALLED}"),
        ([{"role": "assistant", "content": "So:", "tool_calls": [CALL]}], f"assistant: So:\n{CALLED}"),
    ],
)
def test_prompts_are_readable(prompt, text):
    assert format_prompt(prompt) == text


def test_a_text_is_a_message_of_the_user():
    assert as_messages("Hi") == as_messages([USER]) == [USER]


def test_equal_answers_are_counted():
    assert count_equal([["a", "b", ""], ["a", "c", ""], ["a", "b", ""]]) == 2
