"""Tools and calls of them, in the forms that rows have and in the one that a chat template takes."""

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
    """The `tools` of a row: JSON schemas in a list, each of them or all as JSON text too; null or "" for none.

    Args:
        value: the column `tools`.
        functions: the column `functions`, the older form: what each tool has under `function`.

    Raises:
        RowError: for anything else.
    """
    if functions not in (None, "", []):
        if value not in (None, "", []):
            raise RowError("the row has both tools and functions", fix="keep the tools")
        functions = decode_json(functions, "functions", SCHEMAS)
        value = [{"type": "function", "function": item} for item in functions] if isinstance(functions, list) else 0
    if value is None or value == "":
        return ()
    value = decode_json(value, "tools", SCHEMAS)
    if not isinstance(value, list):
        raise RowError("tools is not a list of JSON schemas", fix=SCHEMAS)
    tools = [decode_json(tool, "tools", SCHEMAS) for tool in value]
    if not all(isinstance(tool, dict) and tool for tool in tools):
        raise RowError("tools is not a list of JSON schemas", fix=SCHEMAS)
    return tuple(_with_parameters(tool) for tool in tools)


def _with_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tool with its parameters as a schema, where they are the text of one."""
    inner = decode_json(tool.get("function"), "tools", SCHEMAS)
    if isinstance(inner, dict):
        return {**tool, "function": _with_parameters(inner)}
    if not isinstance(tool.get("parameters"), str):
        return tool
    parameters = json_object(tool["parameters"])
    if parameters is None:
        raise RowError("the parameters of a tool are text that is no JSON schema", tool["parameters"], SCHEMAS)
    return {**tool, "parameters": parameters}


def read_calls(message: dict[str, Any], place: str) -> dict[str, Any]:
    """The message with its calls checked; an older `function_call` becomes one of the `tool_calls`.

    Raises:
        RowError: a call by another role than the assistant, or one that is no object or has arguments of another kind.
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
        raise RowError(f"{place} is a {role} message with tool_calls", fix="only the assistant calls tools")
    if not isinstance(calls, list) or not all(isinstance(call, dict) and call for call in calls):
        raise RowError(f"{place} has tool_calls that are no list of objects", fix="write a list of objects")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict):
            raise RowError(f"{place} has a call whose function is no object", str(function), "write name and arguments")
        given = function.get("arguments")
        if given is not None and not isinstance(given, dict) and json_object(given) is None:
            what = f"{place} calls {function.get('name', 'a tool')} with arguments that are no JSON object"
            raise RowError(what, excerpt_value(given), ARGUMENTS)
    return message


def json_object(value: Any) -> dict[str, Any] | None:
    """The object whose JSON text this is, or None."""
    try:
        decoded = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def with_arguments(message: Message, *, as_text: bool) -> Message:
    """The message with the arguments of its calls as the template takes them: objects, or their JSON text."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_call(call, as_text) for call in calls]} if calls else message


def _call(call: Mapping[str, Any], as_text: bool) -> Mapping[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], as_text)}
    given = call.get("arguments")
    if as_text and isinstance(given, Mapping):
        return {**call, "arguments": json.dumps(given, ensure_ascii=False)}
    decoded = None if as_text else json_object(given)
    return call if decoded is None else {**call, "arguments": decoded}


def takes_text(render: Callable[[Sequence[Message]], str]) -> bool:
    """Whether a template takes the arguments of a call as JSON text and cannot write an object as JSON.

    Args:
        render: the template; it may raise anything.
    """

    def rendered(arguments: Any) -> str:
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
    plain = rendered(json.dumps(given))
    as_object = rendered(given)
    return json.dumps(given) in plain and (not as_object or str(given) in as_object)
