"""Tool schemas and tool calls: parses the forms that occur in rows, and converts calls to what a template takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpo_lightning.data.examples import Message
from dpo_lightning.data.readers.bad_rows import RowError
from dpo_lightning.data.readers.text_cleaning import decode_json, excerpt_value

SCHEMAS = "write a list of objects, one per tool"
ARGUMENTS = 'write the arguments as an object, or as its JSON text ("{}" for none)'


def parse_tools(value: Any, functions: Any = None) -> tuple[Mapping[str, Any], ...]:
    """Parse the `tools` of a row: a list of JSON schemas; the list or each schema may be JSON text.

    Args:
        value: the column `tools`; null or "" for no tools.
        functions: the column `functions`, the older form: a list of what each tool has under `function`.

    Raises:
        RowError: the value is anything else, or both columns have a value.
    """
    if functions not in (None, "", []):
        if value not in (None, "", []):
            raise RowError("the row has both tools and functions", fix="keep the tools")
        functions = decode_json(functions, "functions", SCHEMAS)
        # 0 is not a list, so that the check below reports it.
        value = [{"type": "function", "function": item} for item in functions] if isinstance(functions, list) else 0
    if value is None or value == "":
        return ()
    value = decode_json(value, "tools", SCHEMAS)
    if not isinstance(value, list):
        raise RowError("tools is not a list of JSON schemas", fix=SCHEMAS)
    tools = [decode_json(tool, "tools", SCHEMAS) for tool in value]
    if not all(isinstance(tool, dict) and tool for tool in tools):
        raise RowError("tools is not a list of JSON schemas", fix=SCHEMAS)
    return tuple(_parse_parameters(tool) for tool in tools)


def _parse_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replace `parameters` that are the JSON text of a schema by the schema."""
    inner = decode_json(tool.get("function"), "tools", SCHEMAS)
    if isinstance(inner, dict):
        return {**tool, "function": _parse_parameters(inner)}
    if not isinstance(tool.get("parameters"), str):
        return tool
    parameters = parse_json_object(tool["parameters"])
    if parameters is None:
        raise RowError("the parameters of a tool are text that is not a JSON schema", tool["parameters"], SCHEMAS)
    return {**tool, "parameters": parameters}


def read_calls(message: dict[str, Any], place: str) -> dict[str, Any]:
    """Check the calls of a message; an older `function_call` becomes the only one of `tool_calls`.

    Raises:
        RowError: the role is not the assistant, or a call or its arguments are not an object.
    """
    older = message.get("function_call")
    if older:
        if message.get("tool_calls"):
            raise RowError(f"{place} has both tool_calls and function_call", fix="keep the tool_calls")
        message = {key: value for key, value in message.items() if key != "function_call"}
        message["tool_calls"] = [{"type": "function", "function": older}]
    calls, role = message.get("tool_calls"), message["role"]
    if not calls:
        return message
    if role != "assistant":
        raise RowError(
            f"{place} is a {role} message with tool_calls", fix="remove them: only the assistant can call tools"
        )
    if not isinstance(calls, list) or not all(isinstance(call, dict) and call for call in calls):
        raise RowError(f"{place} has tool_calls that are not a list of objects", fix="write a list of objects")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict):
            raise RowError(
                f"{place} has a call whose function is not an object",
                str(function),
                "write an object with name and arguments",
            )
        given = function.get("arguments")
        if given is not None and not isinstance(given, dict) and parse_json_object(given) is None:
            what = f"{place} calls {function.get('name', 'a tool')} with arguments that are not a JSON object"
            raise RowError(what, excerpt_value(given), ARGUMENTS)
    return message


def parse_json_object(value: Any) -> dict[str, Any] | None:
    """Parse the JSON text of an object; None for any other value."""
    try:
        decoded = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def convert_arguments(message: Message, *, as_text: bool) -> Message:
    """Convert the arguments of a message's calls to what the template takes: JSON text (`as_text`), or objects."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_convert_call(call, as_text) for call in calls]} if calls else message


def _convert_call(call: Mapping[str, Any], as_text: bool) -> Mapping[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _convert_call(call["function"], as_text)}
    given = call.get("arguments")
    if as_text and isinstance(given, Mapping):
        return {**call, "arguments": json.dumps(given, ensure_ascii=False)}
    decoded = None if as_text else parse_json_object(given)
    return call if decoded is None else {**call, "arguments": decoded}


def takes_text(render: Callable[[Sequence[Message]], str]) -> bool:
    """Whether a template needs the arguments of a call as JSON text, because it does not write an object as JSON.

    The template renders a call with either form: it needs text if the text appears unchanged, while the object is
    missing or appears in Python's notation.

    Args:
        render: renders messages with the template; it may raise any exception.
    """

    def render_call(arguments: Any) -> str:
        function = {"name": "f", "arguments": arguments}
        call = {"id": "call00001", "type": "function", "function": function}
        turns: list[Message] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            return render(turns)
        except Exception:  # a template may raise anything
            return ""

    given = {"k": "v"}
    plain = render_call(json.dumps(given))
    as_object = render_call(given)
    return json.dumps(given) in plain and (not as_object or str(given) in as_object)
