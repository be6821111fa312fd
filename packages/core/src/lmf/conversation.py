"""What data records mean once they are understood: conversations, texts, and preferences between replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
Kind = Literal["conversation", "text", "preference", "unpaired", "ranking", "prompt"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant.

    Attributes:
        name: The tool.
        arguments: Its arguments, as JSON values by name.
        id: What the result refers to; "" where results stand in the order of the calls.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: What is said; of a tool message, the result.
        reasoning: What the assistant thought before it spoke.
        calls: The tools that the assistant calls; several at once are parallel calls.
        name: Of a tool message, the tool whose result it is.
        call_id: Of a tool message, the ``id`` of the call that it answers.
        weight: Of an assistant message, how much the loss counts it; 0 for context only.
    """

    role: Role
    content: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and the tools that the assistant may call.

    Attributes:
        messages: The turns, in order.
        tools: Declarations as OpenAI has them: ``{"type": "function", "function": {"name": ...,
            "description": ..., "parameters": JSON schema}}``.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one prompt, of which one is better.

    Attributes:
        prompt: The conversation up to the replies.
        chosen: The better reply: an assistant message, or several turns of which the last is one.
        rejected: The worse one.
        margin: How much better, where the data say so.
    """

    prompt: Conversation
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A conversation whose last reply was judged on its own (KTO, arXiv:2402.01306)."""

    conversation: Conversation
    desirable: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Several replies to one prompt.

    Attributes:
        prompt: The conversation up to the replies.
        replies: The replies.
        scores: One number for each reply, more is better; empty where there are none.
    """

    prompt: Conversation
    replies: tuple[str, ...]
    scores: tuple[float, ...] = ()


Content = Conversation | str | Preference | Unpaired | Ranking
"""What a record holds: of the kind "conversation" a Conversation, of "text" a str, of "prompt" a Conversation
that ends where a reply is due, and of the others the class of that name."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a data file, understood.

    Attributes:
        where: The file and line it comes from, or the file and its number in it.
        data: What it holds.
    """

    where: str
    data: Content
