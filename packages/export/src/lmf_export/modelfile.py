"""Modelfiles of Ollama: the chat template in Go's language, and where replies end.

Source: ``docs/modelfile`` and ``template/template.go`` of Ollama.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lmf import Conversation, LmfError, Message
from lmf.errors import DataError
from lmf.generate.opening import Chatter
from lmf.templates.jinja import AnyTemplate
from lmf.templates.template import Template

from .findings import asked, rendered

KNOWN = ("temperature", "top_k", "top_p", "min_p")
"""Settings of replies that have the same name in transformers."""
PLAIN = ("one turn", "several turns", "a system message")
"""Conversations without tools, thoughts and white space around contents."""


def modelfile(chatter: Chatter) -> str:
    """Return a Modelfile for ``model.gguf`` beside it.

    Raises:
        LmfError: Ollama's template language cannot say what the model's template does.
    """
    lines = ["FROM ./model.gguf", ""]
    if chatter.template:
        bos, eos = chatter.encoder.bos, chatter.encoder.eos
        text = go_template(fields_of(chatter.template, bos, eos), bos, eos)
        lines += [f'TEMPLATE """{text}"""', ""]
    ids, texts = chatter.stops()
    stops = [*(chatter.tokenizer.decode([token]) for token in sorted(ids)), *texts]
    lines += [f'PARAMETER stop """{stop}"""' for stop in stops]  # Ollama reads no escapes
    settings: Any = chatter.model.generation_config
    if settings.do_sample:
        found = {name: getattr(settings, name, None) for name in KNOWN}
        found["repeat_penalty"] = settings.repetition_penalty
        lines += [f"PARAMETER {name} {value}" for name, value in found.items() if value is not None]
    return "\n".join(lines) + "\n"


def go_template(template: Template, bos: str, eos: str) -> str:
    """Return a template of fields in the language of Go.

    Ollama gives it ``Messages``, with neighbours of one role joined. The last reply is left open, for the model goes on
    with it. White space around contents stays, for Ollama cannot remove it.
    """

    def around(form: str) -> tuple[str, str]:
        before, _, after = form.replace("{bos}", bos).replace("{eos}", eos).partition("{content}")
        return _text(before), _text(after)

    def content(form: str, what: str = ".Content") -> str:
        before, after = around(form)
        return before + _do(what) + after

    asks, _ = around(template.assistant)
    says, ends = around(template.reply + template.after_reply)
    roles = {"user": content(template.user)}
    lines = []
    default = ""
    if template.system is not None and template.system_in_user:  # it waits for the next user message
        lines.append(_do('$system := ""') + _do("$waits := false"))
        before, after = around(template.user)
        told = _do("if $waits") + content(template.system, "$system") + _do("$waits = false") + _do("end")
        roles["user"] = before + told + _do(".Content") + after
        roles["system"] = _do("$system = .Content") + _do("$waits = true")
        default = _do(f"$system = {_quote(template.default_system or '')}") + _do("$waits = true")
    elif template.system is not None:
        roles["system"] = content(template.system)
        default = content(template.system, _quote(template.default_system or ""))
    roles["assistant"] = asks + says + _do(".Content") + _do("if not $last") + ends + _do("end")
    if template.tool is not None:
        roles["tool"] = content(template.tool)
    lines.append(around(template.start)[0])
    if template.default_system is not None:
        lines.append(_do('if ne (index .Messages 0).Role "system"') + default + _do("end"))
    lines += [_do("range $i, $_ := .Messages"), _do("$last := eq (len (slice $.Messages $i)) 1")]
    lines += [_do(f'{"else " * (role != "user")}if eq .Role "{role}"') + written for role, written in roles.items()]
    lines += [_do("end"), _do('if and $last (ne .Role "assistant")') + asks + _do("end"), _do("end")]
    return "\n".join(line.replace("{{ ", "{{- ", 1) for line in lines if line)


def fields_of(template: AnyTemplate, bos: str, eos: str) -> Template:
    """Return a template of fields that writes the same prompts, found by rendering short conversations.

    Raises:
        LmfError: There is none: the template does more than put texts around contents.
    """
    if isinstance(template, Template):
        return template
    found = _probed(template, bos, eos)
    if found is None or not _same(template, found, bos, eos):
        raise LmfError(
            f"Ollama's templates put texts around what is said, and {template.called} does more than that.\n"
            "Name one that comes near it: --template NAME (lmf templates list)."
        )
    return found


def _probed(template: AnyTemplate, bos: str, eos: str) -> Template | None:
    system, user, answer = Message("system", "Seven."), Message("user", "Eight?"), Message("assistant", "Nine!")
    other = Message("user", "Ten?")

    def written(*messages: Message) -> str:
        return rendered(template, Conversation(messages), bos, eos)

    try:
        before, asks = written(user).split(user.content)
        opened, between = written(user, answer, other).removesuffix(other.content + asks).split(answer.content)
        says = opened.removeprefix(before + user.content + asks)  # a space, for instance, that is left to the model
        end = next((stop for stop in template.stops(eos) if between.startswith(stop)), "")
        between = between.removeprefix(end)
    except (DataError, ValueError):
        return None
    try:
        opens, _, closes = written(system, user).partition(system.content)
        closes = closes.removesuffix(user.content + asks)
    except DataError:
        opens = closes = None
    asked = _common_end([each for each in (before, between, closes) if each is not None])
    lead = before.removesuffix(asked)
    fields: dict[str, Any] = {"start": lead}
    if opens is not None and closes is not None:
        closes = closes.removesuffix(asked)
        if len(lead) >= len(opens + closes) and lead.startswith(opens) and lead.endswith(closes) and opens:
            default = lead[len(opens) : len(lead) - len(closes)]
            fields = {"start": "", "system": f"{opens}{{content}}{closes}", "default_system": default}
        else:
            fields["system"] = f"{opens.removeprefix(lead)}{{content}}{closes}"
    return Template(
        name=template.name,
        source=template.source,
        user=f"{asked}{{content}}",
        assistant=asks,
        reply=f"{says}{{content}}{end}",
        after_reply=between.removesuffix(asked),
        stop=(end,),
        **fields,
    )


def _common_end(texts: Sequence[str]) -> str:
    """Return the longest text that all end with."""
    first = texts[0]
    return next(first[at:] for at in range(len(first) + 1) if all(text.endswith(first[at:]) for text in texts))


def _same(template: AnyTemplate, found: Template, bos: str, eos: str) -> bool:
    """Return whether two templates write the same prompts, for all conversations without tools and thoughts."""
    same = []
    for name, talk in asked():
        if name not in PLAIN:
            continue
        try:
            expected = rendered(template, talk, bos, eos)
        except DataError:
            continue
        try:
            same.append(rendered(found, talk, bos, eos) == expected)
        except DataError:
            same.append(False)
    return bool(same) and all(same)


def _do(code: str) -> str:
    return f"{{{{ {code} }}}}"


def _text(text: str) -> str:
    return _do(_quote(text)) if text else ""


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # Go reads the escapes of JSON
