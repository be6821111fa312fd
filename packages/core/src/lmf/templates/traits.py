"""What a template has a place for, found by rendering sample conversations with it."""

from __future__ import annotations

from dataclasses import dataclass

from ..conversation import Conversation, Message, ToolCall
from ..errors import DataError
from .jinja import AnyTemplate

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}
_SYSTEM = Message("system", "You answer in one sentence.")
_CALL = ToolCall("get_weather", {"city": "Oslo"}, "call00001")  # Mistral's formats want nine letters and digits
_TALK = (
    Message("user", "Which number is larger, 9.9 or 9.11?"),
    Message("assistant", "9.9 is larger."),
    Message("user", "And 8.12 or 8.3?"),
    Message("assistant", "8.3 is."),
)
_THOUGHT = (
    _TALK[0],
    Message("assistant", _TALK[1].content, reasoning="Nine tenths are more than eleven hundredths."),
    _TALK[2],
    Message("assistant", _TALK[3].content, reasoning="Twelve hundredths are less than three tenths."),
)
_CALLED = (
    Message("user", "How cold is it in Oslo?"),
    Message("assistant", "", calls=(_CALL,)),
    Message("tool", '{"degrees": -4}', name="get_weather", call_id="call00001"),
    Message("assistant", "It is 4 degrees below zero."),
)
_SPOKEN = (  # as LMFlow's formats have it, the call is nothing but text
    _CALLED[0],
    Message("assistant", '[get_weather(city="Oslo")]'),
    Message("tool", _CALLED[2].content),
    _CALLED[3],
)
_SPACED = (
    Message("user", f"  {_TALK[0].content}\n"),
    Message("assistant", f"\n{_TALK[1].content} "),
    Message("user", f"\t{_TALK[2].content}\n\n"),
    Message("assistant", f" {_TALK[3].content}\n"),
)

SAMPLES = {
    "one turn": Conversation(_TALK[:2]),
    "several turns": Conversation(_TALK),
    "a system message": Conversation((_SYSTEM, *_TALK)),
    "reasoning": Conversation(_THOUGHT),
    "a tool call": Conversation(_CALLED, (_WEATHER,)),
    "a tool call with a system message": Conversation((_SYSTEM, *_CALLED), (_WEATHER,)),
    "the result of a call in words": Conversation(_SPOKEN),
    "white space around contents": Conversation(_SPACED),
    "white space around a system message": Conversation((Message("system", f"\n{_SYSTEM.content} "), *_TALK)),
}
"""Conversations that show what formats differ in, by what each has."""

_BOS, _EOS = "<BOS>", "<EOS>"


@dataclass(frozen=True, slots=True)
class Traits:
    """What a template has a place for.

    Attributes:
        system: A system message.
        default_system: The one that it writes when a conversation has none, or "".
        tools: Declarations, calls and results of tools.
        reasoning: What was thought before a reply.
    """

    system: bool
    default_system: str
    tools: bool
    reasoning: bool


def traits(template: AnyTemplate) -> Traits:
    """Find out what a template has a place for."""
    return Traits(
        system=takes(template, SAMPLES["a system message"]),
        default_system=_default_system(template),
        tools=takes(template, SAMPLES["a tool call"]),
        reasoning=takes(template, SAMPLES["reasoning"]),
    )


def takes(template: AnyTemplate, conversation: Conversation) -> bool:
    """Whether a template renders everything in a conversation."""
    try:
        examples = template.examples(conversation, bos=_BOS, eos=_EOS)
    except DataError:
        return False
    thoughts = [message.reasoning for message in conversation.messages]
    trained = "".join(piece.text for pieces in examples for piece in pieces if piece.learned)
    return all(thought in trained for thought in thoughts)


def _default_system(template: AnyTemplate) -> str:
    """Return what stands in place of the system message where there is none."""
    asked = SAMPLES["one turn"].messages[:1]
    mark = "\ue000"  # begins and ends like no other text
    try:
        without, given = (
            "".join(piece.text for piece in template.render(messages, bos=_BOS, eos=_EOS))
            for messages in (asked, (Message("system", mark), *asked))
        )
    except DataError:
        return ""
    before, found, after = given.partition(mark)
    if not found or not without.startswith(before):
        return ""
    rest = without[len(before) :]
    return rest.removesuffix(after) if rest.endswith(after) else ""
