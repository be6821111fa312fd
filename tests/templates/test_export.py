"""What each template exports, run by transformers, gives the ids that the encoder gives.

One difference is meant. Where a message spells a special token, ``apply_chat_template`` writes that
token; the encoder writes its characters, and everything else is the same.
"""

import contextlib
import re
import string
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import lmf_templates
import pytest
from lmf import Conversation, DataError, JinjaTemplate, Message, Record, Template
from lmf.encoding.encoder import IGNORED, Encoder
from lmf.templates.choose import with_reasoning
from lmf.templates.jinja import AnyTemplate
from lmf.testing import fixed_date, openai_message
from talks import TALKS, THOUGHTS, WITH_TOOLS
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATES: dict[str, AnyTemplate] = {template.name: template for template in lmf_templates.lmf_templates()}
TEMPLATES["granite, thinking"] = with_reasoning(TEMPLATES["granite"], "keep")
CONVERSATIONS = {name: Conversation(tuple(messages)) for name, messages in TALKS.items()} | WITH_TOOLS | THOUGHTS
DOCS = Path(__file__).parents[2] / "docs" / "templates.md"
SUBSTITUTES = {"<": "¤", "[": "¢", "s": "§"}  # for the first characters of special tokens; in no conversation
WRITTEN = [
    *(message.content for talk in CONVERSATIONS.values() for message in talk.messages),
    *(str(talk.tools) for talk in CONVERSATIONS.values()),
    *(template.controls() + str(getattr(template, "default_system", "")) for template in TEMPLATES.values()),
]
CHARACTERS = sorted(set(string.printable).union(SUBSTITUTES.values(), *WRITTEN))

each_template = pytest.mark.parametrize("name", TEMPLATES)


@cache
def tokenizer_for(name: str) -> Any:
    """Make a tokenizer that has one token for each special token and for each other character."""
    vocab = {token: id for id, token in enumerate(["[UNK]", *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(dict.fromkeys((*TEMPLATES[name].tokens, *TEMPLATES[name].stops("</s>")))),
    )
    made.chat_template = TEMPLATES[name].jinja()
    return made


@pytest.mark.parametrize("name", ["qwen3", "qwen_qwq", "deepseek_r1", "deepseek_r1_distill", "smollm3"])
def test_a_thought_can_be_begun(name):
    asked, encoder = Message("user", "Why?"), encoder_for(name)
    talk = Conversation((asked, Message("assistant", "So.", reasoning="First, of all.")))
    (whole,) = encoder.examples([Record("here", talk)])
    begun = encoder.prompt([asked], prefill="<think>\nFirst, ")
    assert whole.ids[: len(begun)] == begun
    thinking = encoder.backend.token_to_id("F")
    assert begun.count(thinking) == whole.ids.count(thinking)


@cache
def encoder_for(name: str) -> Encoder:
    return Encoder(tokenizer_for(name), TEMPLATES[name], max_tokens=100_000)


def by_transformers(name: str, talk: Conversation, count: int, reply: bool = False) -> tuple[list[int], list[bool]]:
    """Return the ids of the first messages, or of the prompt behind them, and which the assistant generates."""
    variables = getattr(TEMPLATES[name], "variables", {})
    with fixed_date():
        encoded = tokenizer_for(name).apply_chat_template(
            [openai_message(message) for message in talk.messages[:count]],
            tools=list(talk.tools) or None,
            add_generation_prompt=reply,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **variables,
        )
    return encoded["input_ids"], [bool(mark) for mark in encoded["assistant_masks"]]


def lessons(name: str, talk: Conversation) -> list[tuple[int, list[int], list[bool]]]:
    """Return for each example how many messages it shows, the ids, and which of them are trained."""
    examples = encoder_for(name).examples([Record("here", talk)])
    found = [(example.ids, [label != IGNORED for label in example.labels]) for example in examples]
    shown = [i + 1 for i, message in enumerate(talk.messages) if message.role == "assistant"]
    steady = getattr(TEMPLATES[name], "steady", True)
    if steady or (len(found) == 1 and found[0][0] == by_transformers(name, talk, len(talk.messages))[0]):
        shown = [len(talk.messages)]
    return [(count, *each) for count, each in zip(shown, found, strict=True)]


@cache
def taken(name: str) -> dict[str, Conversation]:
    """Return the conversations that a template has a place for, without system messages if it has none for them."""
    template, found = TEMPLATES[name], {}
    for talk_name, talk in CONVERSATIONS.items():
        if isinstance(template, Template) and template.system is None:
            talk = replace(talk, messages=tuple(m for m in talk.messages if m.role != "system"))
        with contextlib.suppress(DataError):
            template.examples(talk, bos="<s>", eos="</s>")
            found[talk_name] = talk
    return found


def substituted(name: str, text: str) -> str:
    """Return a text whose special tokens are none any more, each by another first character."""
    tokenizer = tokenizer_for(name)
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        text = text.replace(token, SUBSTITUTES[token[0]] + token[1:])
    return text


def restored(name: str, ids: list[int]) -> list[int]:
    vocab = tokenizer_for(name).get_vocab()
    back = {vocab[mark]: vocab[character] for character, mark in SUBSTITUTES.items()}
    return [back.get(id, id) for id in ids]


def honest(name: str, talk: Conversation) -> bool:
    return all(substituted(name, m.content) == m.content for m in talk.messages)


@each_template
def test_the_ids_are_those_of_transformers(name: str) -> None:
    talks = {talk_name: talk for talk_name, talk in taken(name).items() if honest(name, talk)}
    assert len(talks) >= 30
    for talk_name, talk in talks.items():
        for count, ids, _ in lessons(name, talk):
            theirs, marked = by_transformers(name, talk, count)
            assert ids == theirs[: len(ids)], (talk_name, count)
            # of an example for one reply, what stands behind that is left out
            whole = getattr(TEMPLATES[name], "steady", True)
            assert len(ids) == len(theirs) or not (whole or any(marked[len(ids) :])), (talk_name, count)


@each_template
def test_the_prompts_are_those_of_transformers(name: str) -> None:
    for talk_name, talk in taken(name).items():
        for i, message in enumerate(talk.messages):
            if message.role == "assistant" and honest(name, talk):
                theirs = by_transformers(name, talk, i, reply=True)[0]
                assert encoder_for(name).prompt(talk.messages[:i], talk.tools) == theirs, talk_name


@each_template
def test_what_is_trained_is_what_transformers_marks(name: str) -> None:
    for talk_name, talk in taken(name).items():
        if honest(name, talk):
            found = lessons(name, talk)
            for count, ids, trained in found:
                _, marked = by_transformers(name, talk, count)
                alone = len(found) > 1 or count < len(talk.messages)  # it trains its last reply only
                start = "".join(" x"[mark] for mark in marked).rindex(" x") + 1 if alone else 0
                assert trained == [mark and i >= start for i, mark in enumerate(marked[: len(ids)])], talk_name


@each_template
def test_a_special_token_in_a_message_is_plain_characters_and_all_else_is_as_in_transformers(name: str) -> None:
    tokenizer = tokenizer_for(name)
    own = "".join(tokenizer.all_special_tokens)
    for texts in ((own, "ok"), ("ok", own + "x"), (f"a {own}\n{own}", f"b{own}c")):
        messages = [Message(role, text) for role, text in zip(("user", "assistant"), texts, strict=True)]  # type: ignore[arg-type]
        harmless = [Message(message.role, substituted(name, message.content)) for message in messages]
        ((_, ids, trained),) = lessons(name, Conversation(tuple(messages)))
        due, marked = by_transformers(name, Conversation(tuple(harmless)), 2)
        assert (ids, trained) == (restored(name, due)[: len(ids)], marked[: len(ids)])
        forged, _ = by_transformers(name, Conversation(tuple(messages)), 2)
        written = "".join(tokenizer.convert_ids_to_tokens(forged))
        assert written.startswith("".join(tokenizer.convert_ids_to_tokens(ids)))  # the same text
        special = set(tokenizer.all_special_ids)
        spelled = sum(text.count(own) for text in texts) * len(tokenizer.all_special_tokens)
        assert sum(id in special for id in forged) == sum(id in special for id in due) + spelled


def test_every_template_with_a_place_for_tools_or_reasoning_is_tested_on_them() -> None:
    calls, thoughts = (
        {name for name in TEMPLATES if any(talk in taken(name) for talk in talks)}
        for talks in (["call, result"], ["thought"])
    )
    jinja = {name for name, template in TEMPLATES.items() if isinstance(template, JinjaTemplate)}
    assert jinja - calls - thoughts == {"chatglm2", "genie_chatglm2", "olmo2", "phi4"}
    thinking = {"deepseek_r1", "deepseek_r1_distill", "gpt_oss", "granite, thinking", "qwen3", "qwen_qwq", "smollm3"}
    assert thoughts == thinking


def test_the_documentation_says_on_how_many_conversations_each_template_is_tested() -> None:
    docs = DOCS.read_text(encoding="utf-8")
    for name in set(TEMPLATES) - {"granite, thinking"}:
        count = sum(honest(name, talk) for talk in taken(name).values())
        assert re.search(rf"^\| `{name}` \|.* {count} \|$", docs, re.MULTILINE), (name, count)
