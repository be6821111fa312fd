"""Which template a model is spoken to with: one that was asked for, or the model's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..conversation import Conversation, Message, ToolCall
from ..errors import DataError, LmfError
from ..plugins import Plugins
from .jinja import AUTO, AnyTemplate, JinjaTemplate, parted
from .shield import Shield

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reasoning = Literal["strip", "keep", "disable"]

_ASKED = Message("user", "What is one and one?")
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "A number."}}},
    },
}
_PROBES = (
    Conversation((_ASKED, Message("assistant", "Two."))),
    Conversation((_ASKED, Message("assistant", "", calls=(ToolCall("add", {"a": 1}, "call00001"),))), (_TOOL,)),
)


def named_template(name: str, plugins: Plugins) -> AnyTemplate | None:
    """Return the template of a name or of a file in Jinja; None for ``auto``, which needs the tokenizer.

    Raises:
        LmfError: There is no such template, or the file cannot be read.
    """
    if name == AUTO:
        return None
    if not name.endswith((".jinja", ".jinja2")):
        return plugins.templates[name]
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LmfError(f"--template {name} cannot be read: {error}.") from None
    return JinjaTemplate(name=name, source=str(Path(name).absolute()), text=text, stop=())


def template_for(tokenizer: PreTrainedTokenizerBase, asked: AnyTemplate | None) -> AnyTemplate | None:
    """Return the template that was asked for, or else the tokenizer's own; None if there is neither.

    Raises:
        LmfError: It cannot be learned from; the text says why.
    """
    template = asked or own_template(tokenizer)
    return settled(template, tokenizer) if isinstance(template, JinjaTemplate) and not template.stop else template


def complete(tokenizer: PreTrainedTokenizerBase, template: AnyTemplate) -> list[str]:
    """Give a tokenizer the tokens that it lacks for a template; return them."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}  # most often all of them
    missing = [token for token in template.tokens if token not in added and token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return missing


def own_template(tokenizer: PreTrainedTokenizerBase) -> JinjaTemplate | None:
    """Return the chat template that a tokenizer brings, or None.

    Raises:
        LmfError: It cannot be learned from; the text says why.
    """
    text = tokenizer.chat_template
    if isinstance(text, dict):  # several under names; transformers takes tool_use where tools are declared
        plain, tools = text.get("default"), text.get("tool_use")
        if plain is None:
            raise LmfError(
                f"The model brings the chat templates {', '.join(text)}, but no default. Choose a --template."
            )
        text = f"{{% if tools %}}{tools}{{% else %}}{plain}{{% endif %}}" if tools else plain
    if not text:
        return None
    return settled(JinjaTemplate(name=AUTO, source="the model's own chat template", text=text, stop=()), tokenizer)


def settled(template: JinjaTemplate, tokenizer: PreTrainedTokenizerBase) -> JinjaTemplate:
    """Find the tokens that end a reply, where a template of unknown origin does not say them.

    Raises:
        LmfError: The template fails on the simplest conversation, drops some of it, or ends a reply with no token.
    """
    bos, eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
    own = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template = dataclasses.replace(template, variables={**own, **template.variables})
    # a line break may be an added token, but ends no reply: it stands inside replies too
    tokens = Shield([token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()])
    stops: dict[str, None] = {}
    called = template.called.replace("the", "The", 1)
    for number, probe in enumerate(_PROBES):
        try:
            prompt = _text(template, probe.messages[:1], probe, bos, eos, reply=True)
            whole = _text(template, probe.messages, probe, bos, eos)
        except DataError as error:
            if number == 0:
                raise LmfError(f"{str(error).replace('the', 'The', 1)}\nChoose another --template.") from None
            continue  # it has no place for tools
        if not whole.startswith(prompt):
            if number == 0:
                raise LmfError(
                    f"{called} writes a reply otherwise than it asks for one: "
                    f"the prompt {prompt!r} does not begin {whole!r}. Choose another --template."
                )
            continue
        said = probe.messages[-1].content or "add"
        if said not in whole[len(prompt) :]:
            if number == 0:
                raise LmfError(f"{called} drops what the assistant says. Choose another --template.")
            continue  # it drops calls, which is told when there are some
        end = whole[whole.rfind(said) + len(said) :]
        parts = tokens.split(end)
        # an ordinary reply ends with the first token behind it; behind a call may stand one that closes the call
        if len(parts) > 1:
            stops[parts[1] if number == 0 else parts[-2]] = None
        elif number == 0:
            raise LmfError(
                f"{called} ends a reply with {end!r}, where no token ends it: "
                "the model would never learn to stop. Choose another --template."
            )
    template = dataclasses.replace(template, stop=tuple(stops), tokens=tuple(stops))
    try:
        template.examples(_PROBES[0], bos=bos, eos=eos)
    except DataError as error:
        raise LmfError(str(error).replace("the", "The", 1)) from None
    return template


def with_reasoning(template: AnyTemplate, mode: Reasoning) -> AnyTemplate:
    """Tell a template what to do with reasoning.

    Args:
        template: The template; one of fields has no place for reasoning in any mode.
        mode: ``strip``: what the format does by itself, which most often drops the reasoning of earlier
            turns. ``keep``: earlier turns keep theirs, and a format that thinks on request is asked to.
            ``disable``: replies without reasoning.
    """
    if not isinstance(template, JinjaTemplate) or mode == "strip":
        return template
    # the names that templates of Qwen, GLM and others read, and ours
    keep = {"keep_reasoning": True, "preserve_thinking": True, "clear_thinking": False, "enable_thinking": True}
    variables = keep if mode == "keep" else {"enable_thinking": False}
    return dataclasses.replace(template, variables={**template.variables, **variables})


def without_reasoning(conversation: Conversation) -> Conversation:
    """Return a conversation in which nothing is thought, neither apart from what is said nor before it.

    Raises:
        DataError: A reply is nothing but a thought.
    """
    messages = tuple(dataclasses.replace(parted(message), reasoning="") for message in conversation.messages)
    if messages == conversation.messages:
        return conversation
    for i, (message, before) in enumerate(zip(messages, conversation.messages, strict=True)):
        if message != before and not message.calls and not message.content.strip():
            raise DataError(
                f"messages[{i}] is nothing but a thought; without it there is no reply to learn. "
                "Leave the record out, or choose another --reasoning."
            )
    return dataclasses.replace(conversation, messages=messages)


def _text(
    template: JinjaTemplate,
    messages: tuple[Message, ...],
    probe: Conversation,
    bos: str,
    eos: str,
    reply: bool = False,
) -> str:
    return template.text_of(Conversation(messages, probe.tools), reply=reply, bos=bos, eos=eos)
