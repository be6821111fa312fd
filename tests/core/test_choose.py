"""The model's own chat template: how its replies are found, and when it is refused."""

import dataclasses
import re
from pathlib import Path

import pytest
from lmf import Conversation, DataError, JinjaTemplate, LmfError, Message, Plugins, Record, ToolCall, UnknownName
from lmf.encoding.encoder import Encoder
from lmf.templates.choose import Reasoning, named_template, own_template, with_reasoning, without_reasoning
from lmf.templates.jinja import AnyTemplate
from lmf.templates.sandbox import Program
from lmf.templates.traits import traits
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


# marks what is said, but not the token behind it
UNENDED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{% else %}{{ m.content }}{% endfor %}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_mark_that_leaves_out_the_end_goes_on_to_it() -> None:
    due = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
    template = own(UNENDED)
    assert shown(template, Conversation(TALK.messages[:2])) == [due]
    assert shown(dataclasses.replace(template, steady=True), Conversation(TALK.messages[:2])) == [due]
    spaced = own(UNENDED.replace("{% endif %}<|im_end|>", "{% endif %} <|im_end|>"))
    assert "«b <|im_end|>»" in shown(spaced, TALK)[0]
    # the end of a reply is marked, that of a call is not
    calls = own(UNENDED.replace("{{ m.content }}{% endfor %}", "{{ m.content }}<|im_end|>{% endfor %}"))
    called = Conversation((Message("user", "a"), Message("assistant", "", calls=(ToolCall("add", {}),))))
    assert "«b<|im_end|>»" in shown(calls, TALK)[0]
    assert "«add<|im_end|>»" in shown(calls, called)[0]


def test_a_mark_that_no_end_follows_is_refused() -> None:
    text = UNENDED.replace("{% endif %}<|im_end|>", "{% endif %}!<|im_end|>")
    message = r"odel's own template ends messages\[1\] without '<\|im_end\|>'; the model would not learn to stop"
    with pytest.raises(LmfError, match="The m" + message):
        own(text)
    for steady in (True, False):
        template = dataclasses.replace(own(UNENDED), text=text, steady=steady)
        with pytest.raises(DataError, match="the m" + message):
            shown(template, TALK)
    with pytest.raises(LmfError, match=r"does not mark messages\[1\] with {% generation %}\. Choose another"):
        own(CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}")


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
    called = Message("assistant", "<think>hm</think>", calls=(ToolCall("add", {}),))
    assert without_reasoning(Conversation((called,))).messages == (dataclasses.replace(called, content=""),)
    for thought in (Message("assistant", "<think>hm</think>\n"), Message("assistant", " ", reasoning="hm")):
        with pytest.raises(DataError, match=r"messages\[1\] is nothing but a thought; without it there is no reply"):
            without_reasoning(Conversation((TALK.messages[0], thought)))
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


# writes all there is; without one of its parts it drops that in silence
EVERYTHING = (
    "{% if tools %}{{ tools|tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.reasoning_content }}|{{ m.content }}{% for c in m.tool_calls %}"
    "{{ c.function.name }}{{ c.function.arguments|tojson }};{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEARCH = {"type": "function", "function": {"name": "search", "description": "Look it up.", "parameters": {}}}
CATS, ASKED = ToolCall("search", {"q": "cats"}), Message("user", "Please search for cats. Look it up.")
FOUND = (Message("tool", "sunny"), Message("assistant", "It is sunny."))


@pytest.mark.parametrize(
    ("part", "without", "talk", "message"),
    [
        ("tools|tojson", "''", Conversation((ASKED, FOUND[1]), (SEARCH,)), "has no place for tools ('search' is decl"),
        ("tools|tojson", "tools[0].function.name", Conversation((ASKED, FOUND[1]), (SEARCH,)),
         "drops the description of the tool 'search'. Choose another --template"),
        ("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}",
         Conversation((Message("system", "b"), *TALK.messages)), "drops the content of messages[0]"),
        ("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}",
         Conversation((ASKED, Message("assistant", "", calls=(CATS,)), *FOUND)), "drops the content of messages[2]"),
        ("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}",
         Conversation((ASKED, Message("assistant", "search()"), *FOUND)), "drops the content of messages[2]"),
        ("{{ m.reasoning_content }}", "", Conversation((ASKED, Message("assistant", "b", "b"))),
         "drops the reasoning of messages[1]"),
        ("{{ m.content }}", "{{ m.content if not m.tool_calls }}",
         Conversation((ASKED, Message("assistant", "search", calls=(CATS,)))), "drops the content of messages[1]"),
        ("in m.tool_calls", "in (m.tool_calls or [])[:1]",
         Conversation((ASKED, Message("assistant", "", calls=(CATS, CATS)))), "drops the tool calls of messages[1]"),
        ("c.function.arguments|tojson", "''", Conversation((ASKED, Message("assistant", "", calls=(CATS,)))),
         "drops the tool calls of messages[1]"),
    ],
    ids=["tools", "description", "system", "result", "result of words", "reasoning", "content", "calls", "arguments"],
)  # fmt: skip
def test_what_is_dropped_is_an_error_though_the_same_words_stand_elsewhere(
    part: str, without: str, talk: Conversation, message: str
) -> None:
    assert shown(own(EVERYTHING), talk)
    assert EVERYTHING.count(part) == 1
    with pytest.raises(DataError, match=re.escape(f"the model's own template {message}")):
        shown(own(EVERYTHING.replace(part, without)), talk)


def test_what_a_template_writes_only_beside_something_else_is_refused_only_without_it() -> None:
    text = EVERYTHING.replace("{% if tools %}", "{% if tools and messages[0].role == 'system' %}")
    talk = Conversation((Message("system", "Be brief."), ASKED, FOUND[1]), (SEARCH,))
    assert '"search"' in shown(own(text), talk)[0]
    with pytest.raises(DataError, match="has no place for tools"):
        shown(own(text), dataclasses.replace(talk, messages=talk.messages[1:]))


def test_calls_without_declarations_are_no_place_for_tools() -> None:
    assert traits(own(EVERYTHING)).tools
    assert not traits(own(EVERYTHING.replace("tools|tojson", "''"))).tools


def test_a_template_that_refuses_the_sample_is_judged_by_the_record() -> None:
    text = "{% if messages[0].content.startswith('zq') %}{{ raise_exception('what?') }}{% endif %}" + CHATML
    assert len(shown(own(text), TALK)) == 1


def test_what_a_template_has_a_place_for_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    template, count, render = own(EVERYTHING), 0, Program.render

    def counted(*args: object) -> object:
        nonlocal count
        count += 1
        return render(*args)  # type: ignore[arg-type]

    shown(template, TALK)
    monkeypatch.setattr(Program, "render", counted)
    for _ in range(3):
        shown(template, TALK)
    assert count == 3 * 4  # each reply with what stands before it, and its prompt


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


def test_white_space_ends_no_reply_even_where_it_is_an_added_token() -> None:
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = tokenizer_with(text.replace("\n{%", "\n\n{%"))
    tokenizer.add_tokens(["\n", "\n\n"])
    with pytest.raises(LmfError, match=r"ends a reply with '\\n\\n', where no token ends it"):
        own_template(tokenizer)
    tokenizer.chat_template = text.replace("\n{%", "\n[end]\n{%")
    tokenizer.add_tokens(["[end]"])
    template = own_template(tokenizer)
    assert template is not None and template.stop == ("[end]",)
    (example,) = Encoder(tokenizer, template).examples([Record("here", TALK)])
    assert tokenizer.decode([label for label in example.labels if label >= 0]) == "b\n[end]d\n[end]"


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


PREFILLS = ["<", "e", "end|>", "<|im_end|>", "\n", " ", "Sure, ", "the user\n\n", "{", "\\", "\U0003134a"]


@pytest.mark.parametrize("prefill", PREFILLS)
def test_the_beginning_of_a_reply_is_written_as_it_is_given_and_nothing_behind_it(prefill: str) -> None:
    trimming = own(CHATML.replace("m.content", "(m.content | trim)"))
    for template in (own(CHATML), trimming, *(PLUGINS.templates[name] for name in ("chatml", "plain", "yi"))):
        encoder = Encoder(tokenizer_with(None), template)
        asked = encoder.prompt([Message("user", "a")])
        begun = encoder.prompt([Message("user", "a")], prefill=prefill)
        assert begun[: len(asked)] == asked
        reply = begun[len(asked) :]
        assert tokenizer_with(None).decode(reply) == (prefill.lstrip() if template is trimming else prefill)
        assert encoder.control_ids.isdisjoint(reply)


TAGGED = ("<|endoftext|>", "<think>", "</think>", "<|im_start|>", "<|im_end|>")
THINKERS = ("qwen3", "qwen_qwq", "deepseek_r1", "deepseek_r1_distill", "smollm3", "granite", "gpt_oss")
MODES = [*((name, "keep") for name in THINKERS), ("qwen3", "strip"), ("qwen3", "disable"), ("smollm3", "disable")]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_a_thought_in_the_content_is_reasoning_also_where_its_tags_are_special_tokens(name: str, mode: Reasoning):
    template = with_reasoning(PLUGINS.templates[name], mode)
    special = dict.fromkeys((*TAGGED[:-1], *template.tokens, "<|im_end|>"))
    encoder = Encoder(tiny_tokenizer(special=list(special)), template)

    def ids(first: Message, second: Message) -> list[list[int]]:
        talk = Conversation((Message("user", "Why? </think>"), first, Message("user", "And?"), second))
        return [each.ids for each in encoder.examples([Record("here", talk)])]

    inside, outside = (
        [Message("assistant", form.format(text), reasoning=text * apart) for text in ("Hm.", "Well.")]
        for form, apart in (("<think>\n{}\n</think>\n\nSo.", False), ("So.", True))
    )
    assert ids(*inside) == ids(*outside)


def test_a_template_without_a_place_for_thoughts_writes_one_in_the_content_as_text() -> None:
    talk = Conversation((Message("user", "a"), Message("assistant", "<think>hm</think>b")))
    tokenizer = tiny_tokenizer(special=TAGGED)
    for template in (PLUGINS.templates["qwen2_5"], PLUGINS.templates["chatml"], own(CHATML)):
        encoder = Encoder(tokenizer, template)
        (example,) = encoder.examples([Record("here", talk)])
        assert "assistant\n<think>hm</think>b<|im_end|>" in tokenizer.decode(example.ids)
        assert not {1, 2}.intersection(example.ids)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1"])
def test_a_thought_whose_tags_are_special_tokens_can_be_begun(name: str) -> None:
    template = PLUGINS.templates[name]
    special = dict.fromkeys((*TAGGED[:-1], *template.tokens, "<|im_end|>"))
    encoder = Encoder(tiny_tokenizer(special=list(special)), template)
    talk = Conversation((Message("user", "Why?"), Message("assistant", "So.", reasoning="First, of all.")))
    (whole,) = encoder.examples([Record("here", talk)])
    for prefill in ("<think>\nFirst,", "<think>\nFirst, of all.\n</think>\n\nSo"):
        begun = encoder.prompt([Message("user", "Why?")], prefill=prefill)
        assert whole.ids[: len(begun)] == begun
