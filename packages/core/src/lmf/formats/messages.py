"""Messages in a record: OpenAI's role and content, or ShareGPT's from and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..conversation import Message, Role
from ..data.jsonfile import noun
from ..errors import DataError, did_you_mean
from . import fields, toolcalls
from .dialogue import Turn

_Speaker = Role | Literal["caller", "function"]
"""Who speaks: a role, an assistant whose text is nothing but a call, or a function: that call or its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How messages are written.

    Attributes:
        role: The key of the role.
        content: The key of the text.
        roles: What may stand there, and who it is.
        names: How roles are written.
        calls: The calls of an assistant have a key of their own.
    """

    role: str
    content: str
    roles: Mapping[str, _Speaker]
    names: Mapping[Role, str]
    calls: bool


_ROLES: Mapping[str, _Speaker] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",
    "function": "function",
    "function_call": "caller",
    "observation": "tool",
}
_SHAREGPT_ROLES: Mapping[str, _Speaker] = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    **_ROLES,
}
OPENAI = Notation(
    role="role",
    content="content",
    roles=_ROLES,
    names={"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"},
    calls=True,
)
SHAREGPT = Notation(
    role="from",
    content="value",
    roles=_SHAREGPT_ROLES,
    names={"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"},
    calls=False,
)
_MIXED = Notation(  # role and content among from and value
    role="role",
    content="content",
    roles=_SHAREGPT_ROLES,
    names=OPENAI.names,
    calls=True,
)


def read(path: str, value: Any, notation: Notation, weight: float = 1.0) -> list[Turn]:
    """Return the messages of a list.

    Args:
        path: The key of the list.
        value: The list.
        notation: How its messages are written; ShareGPT's may have role and content too.
        weight: Of the assistant's messages that do not tell their own.
    """
    turns: list[Turn] = []
    for number, item in enumerate(fields.items(path, value)):
        turns.append(turn(f"{path}[{number}]", item, notation, turns, weight))
    return turns


def turn(path: str, item: Any, notation: Notation, before: Sequence[Turn] = (), weight: float = 1.0) -> Turn:
    """Return one message; ``before`` are those that it follows."""
    if not isinstance(item, dict):
        expected = f"an object with {notation.role!r} and {notation.content!r}"
        raise DataError(f"{path} is {noun(item)}; it must be {expected}.")
    if notation is SHAREGPT and "role" in item and "from" not in item:
        notation = _MIXED
    if notation.role not in item:
        raise fields.missing(path, notation.role, item)
    speaker = _speaker(f"{path}.{notation.role}", item[notation.role], notation)
    if speaker == "function":
        speaker = "tool" if item.get("name") or _awaits_result(before) else "caller"
    content = item.get(notation.content)
    if len(item) == 2 and isinstance(content, str) and speaker != "caller":  # nearly all messages are as plain as this
        return Turn(path, Message(speaker, content, weight=weight if speaker == "assistant" else 1.0))
    fields.allow(item, _KNOWN[notation.role], f"{path}.", outer=_OUTER)
    calls = toolcalls.called(f"{path}.", item)
    content = _content(path, item, notation, calls)
    if speaker == "caller":
        _check_caller(path, item[notation.role], before)
        if calls:
            raise DataError(f"{path} calls tools twice: by its role and by a key of its own.")
        calls = toolcalls.spoken(f"{path}.{notation.content}", content)
        message = Message(
            "assistant", "" if calls else content, _reasoning(path, item), calls, weight=_weight(path, item, weight)
        )
        return Turn(path, message, spoken=not calls)
    if speaker == "assistant":
        return Turn(
            path, Message("assistant", content, _reasoning(path, item), calls, weight=_weight(path, item, weight))
        )
    _check_silent(path, item, speaker)
    if speaker != "tool":
        return Turn(path, Message(speaker, content))
    name, call_id = _optional(path, "name", item), _optional(path, "tool_call_id", item)
    return Turn(path, Message("tool", content, name=name, call_id=call_id))


def write(turns: Sequence[Turn], notation: Notation, weight: float = 1.0) -> list[dict[str, Any]]:
    """Return the list that ``read`` gives back as the same messages.

    Raises:
        DataError: The notation has no place for something in them.
    """
    return [_written(turn, notation, weight) for turn in turns]


def plain(message: Message) -> str:
    """Return the text of a message that is nothing else.

    Raises:
        DataError: It has more.
    """
    for there, what in (
        (message.calls, "calls of tools"),
        (message.role == "tool", "results of tools"),
        (message.reasoning, "reasoning apart from the reply"),
        (message.weight != 1, "weights of messages"),
    ):
        if there:
            raise DataError(f"it has no place for {what}.")
    return message.content


def _speaker(path: str, name: Any, notation: Notation) -> _Speaker:
    speaker = notation.roles.get(name) if isinstance(name, str) else None
    if speaker is None:
        hint = did_you_mean(name[:100], notation.roles) if isinstance(name, str) else ""
        raise DataError(f"{path} is {noun(name)}; roles are {', '.join(notation.roles)}.{hint}")
    return speaker


def _awaits_result(before: Sequence[Turn]) -> bool:
    """Whether a call has no result yet; then a function speaks, otherwise it is called."""
    for results, turn in enumerate(reversed(before)):
        if turn.message.role == "assistant":
            return max(turn.spoken, len(turn.message.calls)) > results
    return False


def _check_caller(path: str, name: str, before: Sequence[Turn]) -> None:
    """Refuse a call right behind the assistant's own words."""
    if before and before[-1].message.role == "assistant":
        what = f"the role {name} is a call by the assistant and cannot follow assistant"
        if name == "function":
            raise DataError(f"{path}: {what}; if it is a tool's result, give it the key 'name'.")
        raise DataError(f"{path}: {what}; write the call into {before[-1].path}, as tool_calls.")


def _content(path: str, item: Mapping[str, Any], notation: Notation, calls: Sequence[Any]) -> str:
    value = item.get(notation.content)
    if value is None and calls:
        return ""
    if notation.content not in item:
        raise fields.missing(path, notation.content, item)
    return fields.text(f"{path}.{notation.content}", value)


def _reasoning(path: str, item: Mapping[str, Any]) -> str:
    texts = {key: fields.text(f"{path}.{key}", item[key]) for key in fields.given(item, _REASONING)}
    if len(set(texts.values())) > 1:
        raise DataError(f"{path} has {' and '.join(texts)}, which differ; keep one of them.")
    return next(iter(texts.values()), "")


def _weight(path: str, item: Mapping[str, Any], default: float) -> float:
    train, weight = item.get("train"), item.get("weight")
    if train is not None:
        default = 1.0 if fields.flag(f"{path}.train", train) else 0.0
    if weight is None:
        return default
    weight = fields.number(f"{path}.weight", weight)
    if weight < 0:
        raise DataError(f"{path}.weight is {noun(item['weight'])}; it must be at least 0.")
    if train is not None and train != (weight > 0):
        raise DataError(f"{path}.train is {noun(train)} and {path}.weight is {noun(item['weight'])}; keep one of them.")
    return weight


def _check_silent(path: str, item: Mapping[str, Any], role: str) -> None:
    """Refuse what only an assistant has: calls, reasoning, and a weight in the loss."""
    for key in fields.given(item, (*_REASONING, "tool_calls", "function_call")):
        raise DataError(f"{path}.{key}: a message of the role {role} has none; only the assistant reasons and calls.")
    for key in fields.given(item, ("train", "weight")):
        raise DataError(f"{path}.{key} is {noun(item[key])}; only assistant messages are learned, not {role}.")
    if role != "tool" and fields.given(item, ("tool_call_id",)):
        raise DataError(f"{path}.tool_call_id: only the result of a tool, a message of the role tool, answers a call.")


def _optional(path: str, key: str, item: Mapping[str, Any]) -> str:
    value = item.get(key)
    return "" if value is None else fields.text(f"{path}.{key}", value)


def _written(turn: Turn, notation: Notation, weight: float) -> dict[str, Any]:
    message = turn.message
    item: dict[str, Any] = {notation.role: notation.names[message.role], notation.content: message.content}
    if turn.spoken:
        item[notation.role] = _CALLER
    if message.calls and notation.calls:
        item["tool_calls"] = toolcalls.listed(message.calls)
    elif message.calls and message.content:
        raise DataError("it has no place for text beside a call.")
    elif message.calls:
        item |= {notation.role: _CALLER, notation.content: toolcalls.dumped(message.calls)}
    if message.reasoning:
        item["reasoning_content"] = message.reasoning
    if message.role == "assistant" and message.weight != weight:
        item["weight"] = message.weight
    if message.name:
        item["name"] = message.name
    if message.call_id:
        item["tool_call_id"] = message.call_id
    return item


_CALLER = "function_call"  # the role of an assistant whose text is nothing but a call
_OUTER = toolcalls.RECORD_KEYS | {"system"}  # what stands beside the messages, and not in one
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KNOWN = {
    notation.role: frozenset(
        {notation.role, notation.content, *_REASONING, "tool_calls", "function_call", "tool_call_id", "name"}
        | {"train", "weight"}
    )
    for notation in (OPENAI, SHAREGPT)
}
