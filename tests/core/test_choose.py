"""The model's own chat template: how its replies are found, and when it is refused."""

import dataclasses
import re
from pathlib import Path

import pytest
from lmf import Conversation, DataError, JinjaTemplate, LmfError, Message, Plugins, Record, ToolCall, UnknownName
from lmf.encoding.encoder import Encoder
from lmf.templates.choose import named_template, own_template, with_reasoning, without_reasoning
from lmf.templates.jinja import AnyTemplate
from lmf.testing import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

PLUGINS = Plugins(only=["lmf-templates"])
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# drops what was thought in all turns but the last, as Qwen3 does
THINKER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content and (loop.last or keep_reasoning) %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}
TALK = Conversation((Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")))
THOUGHT = Conversation(
    (
        *(Message("user", "a"), Message("assistant", "b", reasoning="hm")),
        *(Message("user", "c"), Message("assistant", "d", reasoning="well")),
    )
)


def tokenizer_with(text: str | dict[str, str] | None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def own(text: str | dict[str, str]) -> JinjaTemplate:
    template = own_template(tokenizer_with(text))
    assert template is not None
    return template


def shown(template: AnyTemplate, conversation: Conversation) -> list[str]:
    """Return each example as text, with « and » around what is trained."""
    return [
        "".join(f"«{piece.text}»" if piece.learned else piece.text for piece in pieces).replace("»«", "")
        for pieces in template.examples(conversation, bos="<|endoftext|>", eos="<|im_end|>")
    ]


def test_a_tokenizer_without_a_chat_template_has_no_template() -> None:
    assert own_template(tokenizer_with(None)) is None


def test_replies_are_found_by_what_stands_behind_their_prompt() -> None:
    template = own(CHATML)
    assert template.stop == ("<|im_end|>",)
    assert shown(template, TALK) == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«d<|im_end|>»\n"
    ]


def test_generation_marks_say_where_a_reply_ends() -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}<|im_end|>!"
        "{% endgeneration %}{% else %}U:{{ m.content }};{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    assert shown(own(marked), TALK) == ["U:a;A:«b<|im_end|>!»U:c;A:«d<|im_end|>!»"]


def test_a_mark_that_takes_in_the_prompt_trains_only_what_is_generated() -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}A:{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}U:{{ m.content }};{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    assert shown(own(marked), TALK) == ["U:a;A:«b<|im_end|>»U:c;A:«d<|im_end|>»"]


@pytest.mark.parametrize("name", ["chatml", "llama2", "gemma", "zephyr", "alpaca", "mistral"])
@pytest.mark.parametrize("marked", [True, False])
def test_the_exported_template_of_a_known_format_trains_the_same(name: str, marked: bool) -> None:
    known = PLUGINS.templates[name]
    text = known.jinja() if marked else re.sub(r"\{%- (end)?generation %\}", "", known.jinja())
    tokenizer = tiny_tokenizer(special=["<|endoftext|>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = text
    found = own_template(tokenizer)
    assert found is not None and found.stop == known.stops("<|im_end|>")
    for conversation in (TALK, Conversation((Message("system", "s"), *TALK.messages))):
        assert shown(found, conversation) == shown(known, conversation)


def test_a_format_that_rewrites_earlier_turns_gives_an_example_for_each_reply() -> None:
    head = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert shown(own(THINKER), THOUGHT) == [
        f"{head}«<think>hm</think>b<|im_end|>»",
        f"{head}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«<think>well</think>d<|im_end|>»",
    ]
    assert len(shown(own(THINKER), TALK)) == 1  # nothing is rewritten where nothing was thought


def test_replies_that_do_not_count_give_no_example_of_their_own() -> None:
    first, said, *rest = THOUGHT.messages
    unlearned = Conversation((first, dataclasses.replace(said, weight=0), *rest))
    assert shown(own(THINKER), unlearned) == shown(own(THINKER), THOUGHT)[1:]
    tokenizer = tokenizer_with(THINKER)
    encoder = Encoder(tokenizer, own_template(tokenizer))
    both, last = (list(encoder.examples([Record("here:1", THOUGHT)], rule)) for rule in ("assistant", "last"))  # type: ignore[arg-type]
    assert ([e.where for e in both], last) == (["here:1", "here:1"], both[1:])


def test_reasoning_of_earlier_turns_is_kept_on_request() -> None:
    (kept,) = shown(with_reasoning(own(THINKER), "keep"), THOUGHT)
    assert kept == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«<think>hm</think>b<|im_end|>»\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«<think>well</think>d<|im_end|>»\n"
    )
    stubborn = own(THINKER.replace("keep_reasoning", "never"))
    with pytest.raises(
        DataError, match="the model's own template drops the reasoning of earlier replies even when told to keep it"
    ):
        shown(with_reasoning(stubborn, "keep"), THOUGHT)


def test_a_thought_in_the_content_may_stand_apart_from_what_is_said() -> None:
    """As QwQ, R1 and Qwen3 have it: the prompt opens the thought, or thinking is off and it is left out."""
    opening = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% set parts = m.content.split('</think>') %}"
        "{{ '<think>' ~ ('</think>' if quiet else parts[0].removeprefix('<think>') ~ '</think>') ~ parts[-1] }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>' ~ ('</think>' if quiet) }}{% endif %}"
    )
    question = Message("user", "a")
    inside = Conversation((question, Message("assistant", "<think>hm</think>b")))
    head = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>"
    assert shown(own(opening), inside) == [f"{head}«hm</think>b<|im_end|>»\n"]
    off = "{% set quiet = enable_thinking is false %}" + opening
    assert shown(with_reasoning(own(off), "disable"), inside) == [f"{head}</think>«b<|im_end|>»\n"]
    drops = own(opening.replace("parts[0].removeprefix('<think>')", "''"))
    with pytest.raises(DataError, match=r"drops the reasoning of messages\[1\], or some of it. .* or --reasoning keep"):
        shown(drops, inside)
    twice = Conversation((question, Message("assistant", "<think>hm</think>b</think>c")))
    with pytest.raises(DataError, match=r"drops the content of messages\[1\]"):
        shown(own(opening), twice)


@pytest.mark.parametrize("system", ["Be /think brief.", "/no_think", "s /system_override /no_think"])
def test_a_format_may_obey_the_switches_in_a_system_text_instead_of_writing_them(system: str) -> None:
    obeys = CHATML.replace("m.content +", "m.content.replace('/no_think', '').replace('/think', '')"
                           ".replace('/system_override', '') +")  # fmt: skip
    talk = Conversation((Message("system", system), *TALK.messages))
    assert shown(own(CHATML), talk)[0].startswith(f"<|im_start|>system\n{system}<|im_end|>")
    assert not any(word.startswith("/") for word in shown(own(obeys), talk)[0].split())
    with pytest.raises(DataError, match=r"drops the content of messages\[0\]"):
        shown(own(obeys), Conversation((Message("user", "what is /no_think?"), TALK.messages[1])))


def test_a_format_that_thinks_on_request_is_asked_where_reasoning_is_kept() -> None:
    asked = "{% if enable_thinking %}<think>{% endif %}"
    text = CHATML.replace("m.role + '\n' +", "m.role + '\n' + ('<think>' + m.reasoning_content + '</think>' "
                          "if enable_thinking and m.reasoning_content else '') +")  # fmt: skip
    kept = with_reasoning(own(asked + text), "keep")
    assert "«<think>hm</think>b<|im_end|>»" in shown(kept, THOUGHT)[0]
    assert kept.render(TALK.messages[:1], reply=True)[0].text.startswith("<think>")
    with pytest.raises(DataError, match=r"drops the reasoning .* or --reasoning keep where it has a switch"):
        shown(own(asked + text), THOUGHT)


def test_reasoning_can_be_left_out() -> None:
    text = (
        THINKER
        + "{% if enable_thinking is defined and not enable_thinking and add_generation_prompt %}<quiet>{% endif %}"
    )
    template = with_reasoning(own(text), "disable")
    assert without_reasoning(THOUGHT) == TALK
    inside = Message("assistant", "<think>\nhm\n</think>\n\nb")
    assert without_reasoning(Conversation((TALK.messages[0], inside))) == Conversation(TALK.messages[:2])
    quoting = Conversation((Message("user", "<think>a</think>b"), Message("assistant", "It is <think>a</think>.")))
    assert without_reasoning(quoting) == quoting
    assert template.render(TALK.messages[:1], reply=True)[0].text.endswith("<|im_start|>assistant\n<quiet>")
    assert with_reasoning(PLUGINS.templates["chatml"], "disable") is PLUGINS.templates["chatml"]


@pytest.mark.parametrize(
    ("text", "conversation", "message"),
    [
        (CHATML, THOUGHT, "the model's own template drops the reasoning of messages[1], or some of it."),
        (CHATML.replace("m.content", "m.content[:30]"), Conversation((Message("user", "a" * 31), TALK.messages[1])),
         "the model's own template drops the content of messages[0], or some of it."),
        (CHATML, Conversation(TALK.messages, (ADD,)),
         "the model's own template has no place for tools ('add' is declared)."),
        (CHATML, Conversation((Message("user", "a"), Message("assistant", "", calls=(ToolCall("add", {}),)))),
         "the model's own template drops the tool calls of messages[1], or some of it."),
        ("{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML, TALK,
         "the model's own template fails: one turn only"),
    ],
    ids=["reasoning", "content", "tools", "calls", "refused"],
)  # fmt: skip
def test_what_a_template_drops_or_refuses_is_an_error_with_the_record(
    text: str, conversation: Conversation, message: str
) -> None:
    tokenizer = tokenizer_with(text)
    template = own_template(tokenizer)
    records = [Record("a.jsonl:1", Conversation(TALK.messages[:2])), Record("a.jsonl:7", conversation)]
    with pytest.raises(DataError) as told:
        list(Encoder(tokenizer, template).examples(records))
    assert str(told.value).startswith(f"a.jsonl:7: {message}")
    encoder = Encoder(tokenizer, template, on_bad_record="skip")
    assert (
        len(
            list(
                encoder.examples(
                    [Record("a.jsonl:7", conversation), Record("a.jsonl:8", Conversation(TALK.messages[:2]))]
                )
            )
        )
        == 1
    )
    assert len(encoder.refused) == 1 and encoder.refused[0].startswith(f"a.jsonl:7: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% if %}", "The model's own template is not valid Jinja: line 1: "),
        ("{{ raise_exception('no') }}", "The model's own template fails: no"),
        ("{{ 1 / 0 }}", "The model's own template fails: ZeroDivisionError: "),
        ("{{ messages + 1 }}", "The model's own template fails: TypeError: "),
        (CHATML.replace("m.content", "''"), "The model's own template drops what the assistant says."),
        (CHATML.replace("'<|im_end|>\n'", "'\n'"), "The model's own template ends a reply with '\\n', where no token"),
        (CHATML.replace("{{ '<|im_start|>assistant\n' }}", "!"),
         "The model's own template writes a reply otherwise than it asks for one: the prompt "),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
         "The model's own template fails: it ran for more than 2 seconds"),
    ],
)  # fmt: skip
def test_a_chat_template_that_cannot_be_learned_from_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(LmfError) as told:
        own_template(tokenizer_with(text))
    assert str(told.value).startswith(message)
    assert "Choose another --template." in str(told.value)


def test_of_several_chat_templates_the_one_for_tools_is_taken_where_tools_are() -> None:
    template = own({"default": CHATML, "tool_use": "tools: {{ tools|tojson }}\n" + CHATML})
    assert shown(template, TALK) == shown(own(CHATML), TALK)
    assert shown(template, Conversation(TALK.messages, (ADD,)))[0].startswith('tools: [{"type": "function"')
    with pytest.raises(LmfError, match="The model brings the chat templates rag, but no default"):
        own({"rag": CHATML})


def test_a_call_that_ends_with_another_token_ends_there() -> None:
    text = (
        "{% if tools %}{{ tools|tojson }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% for c in m.tool_calls %}"
        "{{ c.function.name }}{{ c.function.arguments|tojson }}{% endfor %}<|endoftext|>"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = own(text)
    assert template.stop == ("<|im_end|>", "<|endoftext|>")
    called = Conversation((Message("user", "a"), Message("assistant", "", calls=(ToolCall("add", {"a": 1}),))), (ADD,))
    assert shown(template, called)[0].endswith('«add{"a": 1}<|endoftext|>»')


def test_a_template_is_named_or_a_file_or_the_models_own(tmp_path: Path) -> None:
    assert named_template("auto", PLUGINS) is None
    assert named_template("chatml", PLUGINS) is PLUGINS.templates["chatml"]
    file = tmp_path / "own.jinja"
    file.write_text(CHATML)
    template = named_template(str(file), PLUGINS)
    assert isinstance(template, JinjaTemplate) and (template.text, template.stop) == (CHATML, ())
    with pytest.raises(UnknownName, match="Did you mean 'chatml'"):
        named_template("chatm", PLUGINS)
    with pytest.raises(LmfError, match=re.escape(f"--template {tmp_path}/no.jinja cannot be read: ")):
        named_template(f"{tmp_path}/no.jinja", PLUGINS)


def test_a_reply_can_be_begun() -> None:
    tokenizer = tokenizer_with(THINKER)
    for template in (own_template(tokenizer), PLUGINS.templates["chatml"]):
        encoder = Encoder(tokenizer, template)
        talk = Conversation((Message("user", "a"), Message("assistant", "the user")))
        (whole,) = encoder.examples([Record("here", talk)])
        begun = encoder.prompt([Message("user", "a")], prefill="the user")
        assert whole.ids[: len(begun)] == begun
        assert tokenizer.decode(begun) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nthe user"
