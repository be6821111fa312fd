"""Tools: their declarations, the assistant's calls of them, and both as JSON."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..conversation import ToolCall
from ..data.jsonfile import noun
from ..errors import DataError
from . import fields

RECORD_KEYS = frozenset({"tools", "functions"})  # what declares the tools of a record


def declared(record: Mapping[str, Any], path: str = "") -> tuple[Mapping[str, Any], ...]:
    """Return the tools that a record declares, in OpenAI's form.

    ``tools`` or the older ``functions`` is a list or its JSON text. Each tool is an object or
    its JSON text, whole or only the function in it: ``{"name": ..., "parameters": ...}``.

    Args:
        record: What declares them.
        path: What stands before a key in an error.
    """
    keys = fields.given(record, ("tools", "functions"))
    if not keys:
        return ()
    if len(keys) > 1:
        raise DataError(f"{path}tools and {path}functions both declare the tools; keep one of them.")
    path += keys[0]
    tools = fields.items(path, fields.unpacked(path, record[keys[0]]))
    return tuple(_tool(f"{path}[{number}]", item) for number, item in enumerate(tools))


def called(path: str, item: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the calls of an assistant message: ``tool_calls``, or the older ``function_call``.

    Args:
        path: What stands before a key in an error, with its full stop.
        item: The message.
    """
    keys = fields.given(item, ("tool_calls", "function_call"))
    if not keys:
        return ()
    if len(keys) > 1:
        raise DataError(f"{path}function_call and {path}tool_calls both call tools; keep one of them.")
    if keys == ["function_call"]:
        return (_call(f"{path}function_call", item["function_call"]),)
    path = f"{path}tool_calls"
    return _several(path, fields.items(path, fields.unpacked(path, item["tool_calls"])))


def spoken(path: str, text: str) -> tuple[ToolCall, ...]:
    """Return the calls in a text that is nothing else: the JSON of one, or of a list.

    A text in another notation, such as ``[get_weather()]``, holds none that lmf knows.
    """
    if not _JSON.match(text):
        return ()
    value = fields.unpacked(path, text)
    return _several(path, value) if isinstance(value, list) else (_call(path, value),)


def listed(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Return calls as OpenAI writes them: the opposite of ``called``."""
    return [
        _identity(call) | {"type": "function", "function": {"name": call.name, "arguments": dump(call.arguments)}}
        for call in calls
    ]


def dumped(calls: Sequence[ToolCall]) -> str:
    """Return the JSON of one call, or of a list: the opposite of ``spoken``."""
    values = [_identity(call) | {"name": call.name, "arguments": call.arguments} for call in calls]
    return dump(values if len(values) > 1 else values[0])


def dump(value: Any) -> str:
    """Return a value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def _tool(path: str, item: Any) -> Mapping[str, Any]:
    tool = fields.unpacked(path, item)
    if not isinstance(tool, dict):
        raise DataError(f"{path} is {noun(tool)}; it must be an object that declares a tool.")
    kind = tool.get("type", "function")
    if kind != "function":
        raise DataError(f"{path}.type is {noun(kind)}; lmf knows tools of the type function.")
    if "function" in tool:
        inner, whole = f"{path}.function", {"type": "function", **tool}
    else:
        inner = path
        whole = {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
    function = whole["function"]
    if not isinstance(function, dict):
        raise DataError(f"{inner} is {noun(function)}; it must be an object with 'name' and 'parameters'.")
    _name(inner, function)
    if not isinstance(function.get("parameters"), dict | None):
        raise DataError(f"{inner}.parameters is {noun(function['parameters'])}; it must be an object, a JSON schema.")
    _check_depth(path, whole)
    return whole


def _several(path: str, values: list[Any]) -> tuple[ToolCall, ...]:
    calls = tuple(_call(f"{path}[{number}]", value) for number, value in enumerate(values))
    if not calls:
        raise DataError(f"{path} is an empty list; it must hold a call.")
    ids = [call.id for call in calls if call.id]
    for number, call in enumerate(calls):
        if call.id and ids.count(call.id) > 1:
            raise DataError(
                f"{path}[{number}].id {reprlib.repr(call.id)} is that of another call too; each has its own."
            )
    return calls


def _call(path: str, value: Any) -> ToolCall:
    value = fields.unpacked(path, value)
    if not isinstance(value, dict):
        raise DataError(f"{path} is {noun(value)}; it must be an object that calls a tool.")
    if value.get("type") not in (None, "function"):
        raise DataError(f"{path}.type is {noun(value['type'])}; lmf knows calls of the type function.")
    function, inner = value, path
    if "function" in value:
        function, inner = value["function"], f"{path}.function"
        if not isinstance(function, dict):
            raise DataError(f"{inner} is {noun(function)}; it must be an object with 'name' and 'arguments'.")
    name = _name(inner, function)
    if "arguments" not in function:
        raise fields.missing(inner, "arguments", function)
    arguments = function["arguments"]
    arguments = {} if arguments in (None, "") else fields.unpacked(f"{inner}.arguments", arguments)
    if not isinstance(arguments, dict):
        raise DataError(f"{inner}.arguments is {noun(arguments)}; it must be an object, or its JSON text.")
    _check_depth(f"{inner}.arguments", arguments)
    identity = value.get("id")
    return ToolCall(name, arguments, "" if identity is None else fields.text(f"{path}.id", identity))


def _name(path: str, function: Mapping[str, Any]) -> str:
    if "name" not in function:
        raise fields.missing(path, "name", function)
    name = fields.text(f"{path}.name", function["name"])
    if not name.strip():
        raise DataError(f"{path}.name is empty; a tool has a name.")
    return name


def _check_depth(path: str, value: Any) -> None:
    """Raise DataError for a value that is nested so deeply that writing it would exhaust the interpreter's stack."""
    level = [value]
    for _ in range(_DEEPEST):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise DataError(f"{path} is nested more than {_DEEPEST} levels deep.")


def _identity(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id} if call.id else {}


_DEEPEST = 100
_JSON = re.compile(r"\s*(\{|\[\s*[\{\]])")  # what begins like this is meant as JSON
