"""The shapes that data records come in, and the rules that a conversation has to keep."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args

from .conversation import Conversation, Message, Role
from .errors import DataError, did_you_mean
from .jsonfile import noun
from .specs import DataFormat


def conversation(turns: Sequence[tuple[str, Message]]) -> Conversation:
    """Return the messages of a conversation that can be learned from.

    A system message stands first or nowhere. Then user and assistant alternate; tool messages
    may follow the assistant, and the assistant has the last word. No reply is empty. A user
    message may be empty only right after a system message that is not: that one asks alone.

    Args:
        turns: Each message, and before it the key path it was read from.

    Raises:
        DataError: The conversation breaks a rule; the text names the key path.
    """
    previous: Message | None = None
    for path, message in turns:
        if message.role not in _NEXT[previous.role if previous else None]:
            raise DataError(f"{path}: {_misplaced(message.role, previous)}")
        if not message.content.strip():
            if message.role == "assistant":
                raise DataError(f"{path} is empty; there is no reply to learn.")
            if message.role == "user" and not (previous and previous.role == "system" and previous.content.strip()):
                raise DataError(f"{path} is empty; a user message may be empty only after a system message with text.")
        previous = message
    if previous is None:
        raise DataError("the conversation has no messages.")
    if previous.role != "assistant":
        raise DataError(f"the conversation ends with a {previous.role} message; there is no reply to learn.")
    return Conversation(tuple(message for _, message in turns))


def _misplaced(role: Role, previous: Message | None) -> str:
    if previous is None:
        return f"a conversation cannot begin with a message of the role {role}; system or user comes first."
    if role == "system":
        return "a system message stands only once, and before all others."
    expected = " or ".join(_NEXT[previous.role])
    return f"the role {role} cannot follow {previous.role}; {expected} comes next."


def _messages(record: Mapping[str, Any]) -> Conversation:
    turns = _system(record, "system", "messages")
    for number, item in enumerate(_list("messages", record["messages"])):
        turns.append(_turn(f"messages[{number}]", item, "role", "content", _ROLES))
    return conversation(turns)


def _sharegpt(record: Mapping[str, Any]) -> Conversation:
    turns = _system(record, "system", "conversations")
    for number, item in enumerate(_list("conversations", record["conversations"])):
        openai = isinstance(item, dict) and "role" in item and "from" not in item
        keys = ("role", "content") if openai else ("from", "value")
        turns.append(_turn(f"conversations[{number}]", item, *keys, _SHAREGPT_ROLES))
    return conversation(turns)


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    turns = _system(record, "system", "instruction", "output", "input", "history")
    for number, pair in enumerate(_list("history", [] if record.get("history") is None else record["history"])):
        path = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{path} is {noun(pair)}; it must be a list of two texts, [user, assistant].")
        turns += [_said("user", f"{path}[0]", pair[0]), _said("assistant", f"{path}[1]", pair[1])]
    instruction = _text("instruction", record["instruction"])
    addition = "" if record.get("input") is None else _text("input", record["input"])
    asked = "\n".join(text for text in (instruction, addition) if text)
    turns += [_said("user", "instruction", asked), _said("assistant", "output", record["output"])]
    return conversation(turns)


def _text2text(record: Mapping[str, Any]) -> Conversation:
    turns = _system(record, "system", "input", "output")
    turns += [_said("user", "input", record["input"]), _said("assistant", "output", record["output"])]
    return conversation(turns)


def _document(record: Mapping[str, Any]) -> str:
    text = _text("text", record["text"])
    if not text.strip():
        raise DataError("text is empty; there is nothing to learn.")
    return text


def _system(record: Mapping[str, Any], *keys: str) -> list[tuple[str, Message]]:
    """Begin a conversation with the text of the key ``system``, if keys that are not among ``keys`` do no harm."""
    _refuse_unsupported("", record)
    for key in record:
        meant = "" if key in keys else _misspelled(key, keys)
        if meant and meant not in record:
            raise DataError(f"the key {key!r} is unknown. Did you mean {meant!r}?")
    system = record.get("system")
    return [] if system in (None, "") else [_said("system", "system", system)]


@lru_cache(maxsize=4096)
def _misspelled(key: str, known: tuple[str, ...]) -> str:
    """Return the known key that ``key`` nearly spells; keys that resemble none are the data's own notes."""
    close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.8)
    return close[0] if close else ""


def _turn(path: str, item: Any, role_key: str, text_key: str, roles: Mapping[str, Role]) -> tuple[str, Message]:
    if not isinstance(item, dict):
        raise DataError(f"{path} is {noun(item)}; it must be an object with {role_key!r} and {text_key!r}.")
    _refuse_unsupported(f"{path}.", item)
    for key in (role_key, text_key):
        if key not in item:
            raise DataError(f"{path} has no key {key!r}; its keys are {reprlib.repr(list(item))}.")
    name = item[role_key]
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"{path}.{role_key} is {noun(name)}; {_no_role(name, roles)}")
    return path, Message(role, _text(f"{path}.{text_key}", item[text_key]))


def _no_role(name: Any, roles: Mapping[str, Role]) -> str:
    if name in ("function", "function_call", "observation"):
        return "lmf cannot learn from tool calls yet."
    return f"roles are {', '.join(roles)}.{did_you_mean(str(name)[:100], roles)}"


def _said(role: Role, path: str, value: Any) -> tuple[str, Message]:
    return path, Message(role, _text(path, value))


def _text(path: str, value: Any) -> str:
    """Return a text, or the joined texts of a list of parts ``{"type": "text", "text": ...}``."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        raise DataError(f"{path} is {noun(value)}; it must be a text.")
    for number, part in enumerate(value):
        if part.get("type") != "text":
            kind = reprlib.repr(part.get("type"))
            raise DataError(f"{path}[{number}] is a part of the type {kind}; lmf learns from text only.")
    return "".join(_text(f"{path}[{number}].text", part.get("text")) for number, part in enumerate(value))


def _list(path: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{path} is {noun(value)}; it must be a list.")
    return value


def _refuse_unsupported(path: str, item: Mapping[str, Any]) -> None:
    """Refuse keys that change what there is to learn, rather than learn something else in silence."""
    if _UNSUPPORTED.keys().isdisjoint(item):
        return
    for key, (what, harmless) in _UNSUPPORTED.items():
        if key in item and not harmless(item[key]):
            raise DataError(f"{path}{key}: lmf cannot learn from {what} yet; leave the record out.")


def _empty(value: Any) -> bool:
    return not value or value == "[]"


_UNSUPPORTED: dict[str, tuple[str, Callable[[Any], bool]]] = {  # key: what it holds, and when it says nothing
    "tools": ("tool declarations", _empty),
    "functions": ("tool declarations", _empty),
    "tool_calls": ("tool calls", _empty),
    "function_call": ("tool calls", _empty),
    "images": ("images", _empty),
    "videos": ("videos", _empty),
    "audios": ("audio", _empty),
    "reasoning_content": ("reasoning apart from the content", _empty),
    "thinking": ("reasoning apart from the content", _empty),
    "weight": ("weights of messages", lambda value: value in (None, 1)),
    "chosen": ("preferences", _empty),
    "rejected": ("preferences", _empty),
    "kto_tag": ("preferences", lambda value: value is None),
    "label": ("preferences", lambda value: not isinstance(value, bool)),
}
_NEXT: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
_SHAREGPT_ROLES: Mapping[str, Role] = {
    **_ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}

MESSAGES = DataFormat(
    name="messages",
    summary="Messages with role and content, as OpenAI and LMFlow have them.",
    data="conversation",
    example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    matches=lambda record: "messages" in record,
    read=_messages,
)
ALPACA = DataFormat(
    name="alpaca",
    summary="Instruction, input and output; system and history if there are any.",
    data="conversation",
    example='{"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}',
    matches=lambda record: "instruction" in record and "output" in record,
    read=_alpaca,
)
SHAREGPT = DataFormat(
    name="sharegpt",
    summary="Conversations with from and value, as ShareGPT and Qwen have them.",
    data="conversation",
    example='{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
    matches=lambda record: "conversations" in record,
    read=_sharegpt,
)
TEXT2TEXT = DataFormat(
    name="text2text",
    summary="An input and the output to learn.",
    data="conversation",
    example='{"input": "2 + 3 =", "output": "5"}',
    matches=lambda record: "input" in record and "output" in record and "instruction" not in record,
    read=_text2text,
)
TEXT = DataFormat(
    name="text",
    summary="A text to learn as a whole.",
    data="text",
    example='{"text": "Once upon a time ..."}',
    matches=lambda record: "text" in record,
    read=_document,
)
