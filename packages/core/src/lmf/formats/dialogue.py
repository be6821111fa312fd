"""The rules that a conversation has to keep."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..conversation import Conversation, Message, Role
from ..errors import DataError


class Turn(NamedTuple):
    """A message of a record.

    Attributes:
        path: The key path that it was read from.
        message: The message.
        spoken: Its text calls a tool in a notation of its own, so that results may follow.
    """

    path: str
    message: Message
    spoken: bool = False


def conversation(turns: Sequence[Turn], tools: Iterable[Mapping[str, Any]] = ()) -> Conversation:
    """Return a conversation that can be learned from.

    A system message stands first or nowhere. Then user and assistant alternate; the results of
    tools follow the assistant message that calls them, and the assistant has the last word. No
    reply is empty. A user message may be empty only right after a system message that is not:
    that one asks alone. At least one reply has a weight.

    Args:
        turns: The messages, in order.
        tools: The tools that the assistant may call.

    Raises:
        DataError: The conversation breaks a rule; the text names the key path.
    """
    messages = _ordered(turns)
    if messages[-1].role != "assistant":
        raise DataError(f"the conversation ends with a {messages[-1].role} message; there is no reply to learn.")
    if not any(message.weight for message in messages if message.role == "assistant"):
        raise DataError("every assistant message has the weight 0; there is no reply to learn.")
    return Conversation(messages, tuple(tools))


def prompt(turns: Sequence[Turn], tools: Iterable[Mapping[str, Any]] = ()) -> Conversation:
    """Return a conversation that ends where a reply is due; else it keeps the same rules.

    Raises:
        DataError: The conversation breaks a rule; the text names the key path.
    """
    messages = _ordered(turns)
    if messages[-1].role not in ("user", "tool"):
        role = messages[-1].role
        raise DataError(f"the prompt ends with a message of the role {role}; a user or tool message asks for a reply.")
    return Conversation(messages, tuple(tools))


def marked(messages: Sequence[Message]) -> list[Turn]:
    """Return the turns of messages that keep the rules, with the mark of those that call in their own notation."""
    after: list[Message | None] = [*messages[1:], None]
    return [
        Turn(
            f"messages[{number}]",
            message,
            message.role == "assistant" and not message.calls and _role(following) == "tool",
        )
        for number, (message, following) in enumerate(zip(messages, after, strict=True))
    ]


def _ordered(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Check all but how the conversation ends."""
    if not turns:
        raise DataError("the conversation has no messages.")
    previous: Message | None = None
    results: list[Message] = []  # since the last message of the assistant
    caller = turns[0]
    for turn in turns:
        path, message, _ = turn
        role = message.role
        if role not in _NEXT[previous.role if previous else None]:
            raise DataError(f"{path}: {_misplaced(role, previous)}")
        if role == "tool":
            _check_result(turn, caller, results)
            results.append(message)
        elif role == "assistant":
            caller, results = turn, []
        elif previous and previous.calls:
            raise DataError(f"{path}: the role {role} cannot follow a call; the tool's result comes next.")
        if not message.content or message.content.isspace():
            if role == "assistant" and not message.calls:
                raise DataError(f"{path} is empty; there is no reply to learn.")
            if role == "user" and not (previous and previous.role == "system" and previous.content.strip()):
                raise DataError(f"{path} is empty; a user message may be empty only after a system message with text.")
        previous = message
    return tuple([turn.message for turn in turns])


def _check_result(turn: Turn, caller: Turn, results: Sequence[Message]) -> None:
    """Check that the tool's result answers one of the calls of the assistant message ``caller``."""
    path, result, _ = turn
    calls = caller.message.calls
    if caller.spoken:
        return
    if not calls:
        raise DataError(f"{path}: the result of a tool that was not called; {caller.path} calls none.")
    if len(results) == len(calls):
        raise DataError(f"{path}: a result too many; {caller.path} calls {len(calls)}.")
    if result.call_id:
        ids = [call.id for call in calls]
        if result.call_id not in ids:
            known = _listed(each for each in ids if each)
            raise DataError(f"{path} answers the call {_short(result.call_id)}; the ids of {caller.path} are {known}.")
        if any(each.call_id == result.call_id for each in results):
            raise DataError(f"{path} answers the call {_short(result.call_id)} once more; each has one result.")
    called = [call.name for call in calls if result.call_id in ("", call.id)]
    if result.name and result.name not in called:
        raise DataError(f"{path} is the result of {_short(result.name)}; {caller.path} calls {_listed(called)}.")


def _misplaced(role: Role, previous: Message | None) -> str:
    if previous is None:
        return f"a conversation cannot begin with a message of the role {role}; system or user comes first."
    if role == "system":
        return "a system message stands only once, and before all others."
    if previous.role == "assistant":
        return f"the role {role} cannot follow assistant; {'tool' if previous.calls else 'user'} comes next."
    expected = " or ".join(_NEXT[previous.role])
    return f"the role {role} cannot follow {previous.role}; {expected} comes next."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_short, list(names)[:5])) or "none"


def _role(message: Message | None) -> Role | None:
    return message.role if message else None


_short = reprlib.repr  # a text of the data, cut to a line
_NEXT: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
