"""Tool calls and tools in the forms that rows have, as templates are given them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny_models
from support.row_files import assistant, jsonl, refusal, user

from dpo_lightning.data.encoding.rendering import Renderer
from dpo_lightning.data.encoding.tokenization import Encoder
from dpo_lightning.data.kinds.pairs import PairKind
from dpo_lightning.data.kinds.sft import SFTKind
from dpo_lightning.data.load import load_examples
from dpo_lightning.errors import ExitCode

HEAD = (
    "{% for tool in tools or [] %}{{ tool|tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}"
)
TAIL = (
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OBJECTS = HEAD + "{{ call.function.arguments|tojson }}" + TAIL
"""Writes arguments as JSON, and text as JSON text within JSON, as Qwen2.5's template does."""
ITEMS = HEAD + "{% for k, v in call.function.arguments|items %}({{ k }}={{ v }}){% endfor %}" + TAIL
EITHER = HEAD + (
    "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}"
    "{{ call.function.arguments|tojson }}{% endif %}" + TAIL
)
TEXT = HEAD + "{{ '```' + call.function.arguments + '```' }}" + TAIL
"""Takes text alone, as DeepSeek's template does."""
PRINTED = HEAD + "{{ call.function.arguments }}" + TAIL
"""Takes text; of an object it would write Python's form."""

GIVEN = {"city": "서울", "days": 2}
JSON = json.dumps(GIVEN, ensure_ascii=False)
TIGHT = json.dumps(GIVEN, ensure_ascii=False, separators=(",", ":"))
U, TOOL, LAST = user("Weather?"), {"role": "tool", "content": "sunny", "name": "weather"}, assistant("It is sunny.")


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def rendered(folder: Path, messages: list[Any], template: str = OBJECTS, **more: Any) -> tuple[str, str, list[str]]:
    """The text of a demonstration, what of it is learned, and what was said."""
    tokenizer = tiny_models.make_chat_tokenizer(template=template)
    rows = [{"messages": messages, **more}, {"messages": [user("Hello"), LAST]}]
    examples, warnings = load_examples(SFTKind, jsonl(folder, rows))
    encoder = Encoder(Renderer(tokenizer), 1000)
    row = encoder.encode(examples)[0]
    learned = [id_ for id_, own in zip(row.completion.ids, row.completion.scored, strict=True) if own]
    text = tokenizer.decode([*row.prompt_ids, *row.completion.ids])
    return text, tokenizer.decode(learned), [*warnings, *encoder.counts.format_lines()]


@pytest.mark.parametrize("given", [JSON, TIGHT])
@pytest.mark.parametrize(
    ("template", "written"),
    [(OBJECTS, JSON), (EITHER, JSON), (ITEMS, "(city=서울)(days=2)")],
)
def test_arguments_that_are_json_text_are_decoded_and_that_is_said(
    tmp_path: Path, template: str, written: str, given: str
) -> None:
    text, learned, said = rendered(tmp_path, [U, call(given), TOOL, LAST], template)
    assert learned == f"weather{written}<|im_end|>It is sunny.<|im_end|>"
    assert (text, learned, []) == rendered(tmp_path, [U, call(GIVEN), TOOL, LAST], template)
    assert len(said) == 1
    assert said[0].startswith("1 of 2 rows have tool calls whose arguments were converted")


@pytest.mark.parametrize("template", [TEXT, PRINTED])
def test_a_template_that_takes_text_is_given_text(tmp_path: Path, template: str) -> None:
    """As it stands in the row where it is text, and an object as its JSON: never in Python's form."""
    for given, written, count in ((TIGHT, TIGHT, 0), (JSON, JSON, 0), (GIVEN, JSON, 1)):
        _, learned, said = rendered(tmp_path, [U, call(given), TOOL, LAST], template)
        assert written in learned
        assert "'city'" not in learned
        assert len(said) == count


def test_the_older_form_of_calls(tmp_path: Path) -> None:
    """A `function_call`, its result by a `function`, and the row's `functions`."""
    schema = {"name": "weather", "parameters": {"type": "object"}}
    older = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": JSON}}
    found = rendered(tmp_path, [U, older, {**TOOL, "role": "function"}, LAST], functions=[schema])
    tools = [{"type": "function", "function": schema}]
    same = rendered(tmp_path, [U, call(JSON), TOOL, LAST], tools=tools)
    assert found == same
    assert f"{json.dumps(tools[0])}\n<|im_start|>user" in found[0]


@pytest.mark.parametrize("form", [list, json.dumps, lambda tools: [json.dumps(tool) for tool in tools]])
@pytest.mark.parametrize("inner", [lambda schema: schema, json.dumps])
def test_tools_as_text(tmp_path: Path, form: Any, inner: Any) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    for wrap in (lambda tool: tool, lambda tool: {"type": "function", "function": tool}):
        tools = form([wrap({"name": "weather", "parameters": inner(schema)})])
        rows = [{"messages": [U, LAST], "tools": tools}, {"messages": [user("Hello"), LAST]}]
        examples, _ = load_examples(SFTKind, jsonl(tmp_path, rows))
        assert examples[0].tools == (wrap({"name": "weather", "parameters": schema}),)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (call("city: Seoul"), "calls weather with arguments that are not a JSON object"),
        (call('{"city": "Se'), "arguments that are not a JSON object"),
        (call('["Seoul"]'), "arguments that are not a JSON object"),
        (call(""), "arguments that are not a JSON object"),
        (call(["Seoul"]), "arguments that are not a JSON object"),
        (call("[" * 100_000), "arguments that are not a JSON object"),
        ({**call(JSON), "function_call": {"name": "f"}}, "both tool_calls and function_call"),
        ({**U, "function_call": {"name": "f"}}, "a user message with tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": "f()"}]}, "a call whose function is not an object"),
    ],
)
def test_calls_that_cannot_be_read(tmp_path: Path, message: Any, what: str) -> None:
    path = jsonl(tmp_path, [{"messages": [U, LAST]}, {"messages": [U, message, LAST]}])
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, "'messages' message 2", what, f"{path}:2")


@pytest.mark.parametrize(
    "more",
    [
        {"tools": ["f()"]},
        {"tools": [{"name": "f", "parameters": "city"}]},
        {"tools": [{"name": "f"}], "functions": [{"name": "f"}]},
        {"functions": "f()"},
        {"functions": {"name": "f"}},
    ],
)
def test_tools_that_cannot_be_read(tmp_path: Path, more: Any) -> None:
    path = jsonl(tmp_path, [{"messages": [U, LAST]}, {"messages": [user("Hello"), LAST], **more}])
    refusal(lambda: load_examples(SFTKind, path), ExitCode.DATA, f"{path}:2", "fix: ")


def test_arguments_of_pairs_are_decoded_in_prompt_and_answers(tmp_path: Path) -> None:
    tokenizer = tiny_models.make_chat_tokenizer(template=OBJECTS)
    row = {"prompt": [U, call(JSON), TOOL], "chosen": [call(TIGHT)], "rejected": [LAST]}
    examples, _ = load_examples(PairKind, jsonl(tmp_path, [row, {**row, "chosen": [assistant("Sun.")]}]))
    encoder = Encoder(Renderer(tokenizer), 1000)
    pair = encoder.encode(examples)[0]
    assert f"weather{JSON}<|im_end|>" in tokenizer.decode(pair.prompt_ids)
    assert tokenizer.decode(pair.chosen.ids) == f"weather{JSON}<|im_end|>"
    assert encoder.counts.converted_calls == 2


def test_a_template_that_fails_on_a_value_is_not_blamed_on_the_order_of_roles(tmp_path: Path) -> None:
    template = OBJECTS.replace("{{ m.content or '' }}", "{{ m.content or '' }}{{ m.name|items|list }}")
    refusal(
        lambda: rendered(tmp_path, [{**U, "name": "weather"}, LAST], template),
        ExitCode.DATA,
        "Can only get item pairs from a mapping",
        "correct the values in the row's messages",
        "--data.chat_template",
    )
