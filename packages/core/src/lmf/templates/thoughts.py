"""Thoughts in the content of messages, which are set apart before a shield hides their tags from a template."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..conversation import Conversation
from .jinja import AnyTemplate, JinjaTemplate, parted
from .template import Piece
from .traits import SAMPLES, takes

BEGIN, END = "<think>", "</think>"  # of a thought, in nearly all formats that have any


def hidden(template: AnyTemplate | None, controls: Collection[str]) -> bool:
    """Whether a template has a place for thoughts that it would not find.

    It looks for their tags in contents. Where a tag is a control token, what spells one there is guarded.

    Args:
        template: The template.
        controls: The control tokens.
    """
    if not isinstance(template, JinjaTemplate) or {BEGIN, END}.isdisjoint(controls):
        return False
    # told to leave thoughts out, it has to find them all the same
    variables = {key: value for key, value in template.variables.items() if key != "enable_thinking" or value}
    return takes(replace(template, variables=variables), SAMPLES["reasoning"])


def apart(conversation: Conversation) -> Conversation:
    """Return a conversation in which the thoughts that contents begin with are reasoning."""
    if not any(BEGIN in message.content for message in conversation.messages):
        return conversation
    return replace(conversation, messages=tuple([parted(message) for message in conversation.messages]))


def begun(prompt: str, prefill: str, control: bool) -> list[Piece]:
    """Return the pieces of a reply that is begun with a thought.

    Args:
        prompt: What it follows. Where a thought stands, the prompt says: it may have opened one.
        prefill: The beginning, from the tag on.
        control: Whether the tags are the template's own.
    """
    rest = prefill.lstrip().removeprefix(BEGIN)
    opened = prompt.rstrip().endswith(BEGIN)
    if opened and prompt.endswith("\n"):
        rest = rest.removeprefix("\n")
    thought, closed, said = rest.partition(END)
    texts = (("" if opened else BEGIN, control), (thought, False), (closed, control), (said, False))
    return [Piece(text, control=tag, trained=True) for text, tag in texts if text]
