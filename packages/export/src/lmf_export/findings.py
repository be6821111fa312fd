"""What was found in an export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lmf import Conversation, LmfError
from lmf.errors import DataError
from lmf.formats import messages as notation
from lmf.formats.dialogue import Turn
from lmf.generate.opening import Chatter
from lmf.templates.jinja import AnyTemplate, JinjaTemplate
from lmf.templates.traits import SAMPLES

PROBE = "The quick brown fox jumps over the lazy dog. 12345"
"""A text whose logits are compared."""
Finding = tuple[bool | None, str]
"""Whether something is right, and what; None for what has to be known."""


def tell(findings: list[Finding]) -> None:
    """Print what was found.

    Raises:
        LmfError: Something is wrong.
    """
    for right, text in findings:
        print(f"{'--' if right is None else 'ok' if right else 'BAD':3}  {text}")
    wrong = sum(right is False for right, _ in findings)
    if wrong:
        raise LmfError(f"{wrong} of {len(findings)} checks failed.")


def asked() -> Iterator[tuple[str, Conversation]]:
    """Yield conversations that the model is to speak on in, and what each shows.

    Earlier replies begin without white space: lmf reads a reply as it was written, from where it began, while other
    programs read the text as a whole, where that space may be one token with what stands before.
    """
    for name, talk in SAMPLES.items():
        for end, message in enumerate(talk.messages):
            if message.role == "assistant":
                said = (
                    replace(each, content=each.content.lstrip()) if each.role == "assistant" else each
                    for each in talk.messages[:end]
                )
                yield name, Conversation(tuple(said), talk.tools)


def rendered(template: AnyTemplate, talk: Conversation, bos: str, eos: str) -> str:
    """Return the text of a prompt.

    Raises:
        DataError: The template has no place for something in the conversation.
    """
    pieces = template.render(talk.messages, tools=talk.tools, reply=True, bos=bos, eos=eos)
    return "".join(piece.text for piece in pieces)


def jinja_of(template: AnyTemplate) -> str:
    """Return a template for other programs, which know nothing of what it was told about thoughts."""
    told = template.variables if isinstance(template, JinjaTemplate) else {}
    return "".join(f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in told.items()) + template.jinja()


def compared(tokenizer: Any, ours: Chatter) -> list[Finding]:
    """Compare the ids of prompts by transformers' chat template with those by lmf."""
    if ours.template is None or not tokenizer.chat_template:
        both = ours.template is None and not tokenizer.chat_template
        return [(both, "it is a model of texts, without a template" if both else "only one side has a chat template")]
    results: dict[str, list[bool]] = {}
    for name, talk in asked():
        try:
            expected = ours.ids(talk.messages, tools=talk.tools)
        except DataError:
            continue  # it has no place for such a conversation
        results.setdefault(name, []).append(_prompt(tokenizer, talk) == expected)
    different = [name for name, same in results.items() if not all(same)]
    if different:
        return [(False, f"its chat template writes another prompt for {', '.join(different)}")]
    same = sum(map(len, results.values()))
    return [(same > 0, f"its chat template gives the ids of lmf for {same} of {same} prompts")]


def _prompt(tokenizer: Any, talk: Conversation) -> Any:
    """Return the ids that transformers makes of a prompt; None if the template refuses it."""
    from jinja2 import TemplateError

    turns = [Turn(f"messages[{number}]", message, False) for number, message in enumerate(talk.messages)]
    said = notation.write(turns, notation.OPENAI)
    try:
        return tokenizer.apply_chat_template(
            said, tools=list(talk.tools) or None, add_generation_prompt=True, return_dict=False
        )
    except (TemplateError, ValueError, TypeError):
        return None
