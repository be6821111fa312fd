"""The ways in which a record asks: messages, Alpaca's keys, or one text; each can be read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..conversation import Conversation, Message, Role
from ..data.jsonfile import noun
from ..errors import DataError
from . import fields, messages, toolcalls
from .dialogue import Turn, marked
from .messages import OPENAI, SHAREGPT

Fields = Mapping[str, Any]
NOTATIONS = {"messages": OPENAI, "conversations": SHAREGPT}  # by the key of the list
TALK_KEYS = toolcalls.RECORD_KEYS | {"system"}  # what may stand beside a list of messages
TASK_KEYS = frozenset({"instruction", "input", "history", "system"})  # what asks in Alpaca's records


def said(role: Role, path: str, value: Any) -> Turn:
    """Return a message that is only text."""
    return Turn(path, Message(role, fields.text(path, value)))


def system(record: Fields, path: str = "") -> list[Turn]:
    """Begin a conversation with the text of the key ``system``, if there is any."""
    value = record.get("system")
    return [] if value in (None, "") else [said("system", f"{path}system", value)]


def talk(record: Fields, key: str, path: str = "") -> list[Turn]:
    """Return the system message and those of a list.

    Args:
        record: What holds them.
        key: ``messages``, or ShareGPT's ``conversations``.
        path: What stands before a key in an error.
    """
    return system(record, path) + messages.read(path + key, record[key], NOTATIONS[key])


def talk_record(talked: Conversation, key: str) -> dict[str, Any]:
    """Return the record of which ``talk`` gives this conversation."""
    record: dict[str, Any] = {key: messages.write(marked(talked.messages), NOTATIONS[key])}
    if key == "conversations" and talked.tools:  # ShareGPT's are a JSON text
        return record | {"tools": toolcalls.dump(talked.tools)}
    return record | tools_record(talked)


def tools_record(talked: Conversation) -> dict[str, Any]:
    """Return the key that declares the tools, if there are any."""
    return {"tools": list(talked.tools)} if talked.tools else {}


def question(path: str, value: Any, weight: float = 1.0) -> list[Turn]:
    """Return messages from a text, which is the user's, or from a list of them.

    Args:
        path: The key.
        value: The text or the list.
        weight: Of the assistant's messages that do not tell their own.
    """
    return messages.read(path, value, OPENAI, weight) if _spoken(value) else [said("user", path, value)]


def answer(path: str, value: Any) -> list[Turn]:
    """Return messages from a text, which is the assistant's, or from a list of them."""
    return messages.read(path, value, OPENAI) if _spoken(value) else [said("assistant", path, value)]


def question_record(asked: Conversation, key: str) -> dict[str, Any]:
    """Return the record that asks this by the text of one key, after a system message if there is one."""
    *before, text = texts(asked)
    if len(before) > (asked.messages[0].role == "system"):
        raise DataError("it has no place for earlier turns.")
    return {"system": before[0], key: text} if before else {key: text}


def task(record: Fields) -> list[Turn]:
    """Return the messages up to the reply in Alpaca's keys."""
    turns = system(record)
    history = record.get("history")
    for number, pair in enumerate([] if history is None else fields.items("history", history)):
        path = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{path} is {noun(pair)}; it must be a list of two texts, [user, assistant].")
        turns += [said("user", f"{path}[0]", pair[0]), said("assistant", f"{path}[1]", pair[1])]
    instruction = fields.text("instruction", record["instruction"])
    addition = "" if record.get("input") is None else fields.text("input", record["input"])
    turns.append(said("user", "instruction", "\n".join(part for part in (instruction, addition) if part)))
    return turns


def task_record(asked: Conversation) -> dict[str, Any]:
    """Return the record of which ``task`` gives this conversation."""
    *before, instruction = texts(asked)
    record: dict[str, Any] = {"instruction": instruction, "input": ""}
    if asked.messages[0].role == "system":
        record["system"] = before.pop(0)
    if before:
        record["history"] = [list(pair) for pair in zip(before[::2], before[1::2], strict=True)]
    return record


def texts(talked: Conversation) -> list[str]:
    """Return the texts of messages that are nothing else.

    Raises:
        DataError: They have more, or tools are declared.
    """
    if talked.tools:
        raise DataError("it has no place for tool declarations.")
    return [messages.plain(message) for message in talked.messages]


def _spoken(value: Any) -> bool:
    """Whether a list holds messages, and not the parts of one text."""
    if not isinstance(value, list):
        return False
    return not (value and isinstance(value[0], dict) and "type" in value[0] and "role" not in value[0])
