"""What a template promises, on small formats written here."""

import dataclasses
from typing import Any

import pytest
from jinja2 import TemplateError
from lmf import DataError, Message, Piece, PluginError, Template
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

BASIC: dict[str, Any] = {
    "name": "basic",
    "source": "https://example.com",
    "start": "{bos}",
    "system": "[S]{content}\n",
    "user": "[U]{content}\n",
    "assistant": "[A]",
    "reply": " {content}{eos}",
    "after_reply": "\n",
    "stop": ("{eos}",),
}
TOKENS = {"bos": "<s>", "eos": "</s>"}

SYSTEM = Message("system", "Be brief.")
USER = Message("user", "Hi")
ASSISTANT = Message("assistant", "Hello!")
TOOL = Message("tool", "42")


def text(template: Template, *messages: Message, reply: bool = False) -> str:
    return "".join(piece.text for piece in template.render(messages, reply=reply, **TOKENS))


def by_jinja(template: Template, *messages: Message, reply: bool = False, **special: str) -> str:
    """Render by transformers, from the Jinja form."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({})), **special)
    dicts = [dataclasses.asdict(message) for message in messages]
    return str(
        tokenizer.apply_chat_template(
            dicts, chat_template=template.jinja(), tokenize=False, add_generation_prompt=reply
        )
    )


def test_a_conversation_becomes_pieces_that_know_who_wrote_them_and_what_is_trained() -> None:
    assert Template(**BASIC).render([USER, ASSISTANT], **TOKENS) == [
        Piece("<s>", control=True),
        Piece("[U]", control=True),
        Piece("Hi"),
        Piece("\n", control=True),
        Piece("[A]", control=True),
        Piece(" ", control=True, trained=True),
        Piece("Hello!", trained=True),
        Piece("</s>", control=True, trained=True),
        Piece("\n", control=True),
    ]


def test_a_prompt_ends_with_what_asks_for_the_reply() -> None:
    assert text(Template(**BASIC), USER, reply=True) == "<s>[U]Hi\n[A]"


def test_rendering_no_message_gives_only_the_start() -> None:
    assert text(Template(**BASIC)) == "<s>"


def test_a_tokenizer_may_lack_a_token() -> None:
    pieces = Template(**BASIC).render([USER])
    assert [piece.text for piece in pieces] == ["[U]", "Hi", "\n"]


def test_the_default_system_message_is_used_when_there_is_none() -> None:
    template = Template(**BASIC, default_system="Help.")
    assert text(template, USER) == "<s>[S]Help.\n[U]Hi\n"
    assert text(template, SYSTEM, USER) == "<s>[S]Be brief.\n[U]Hi\n"
    assert by_jinja(template, USER, bos_token="<s>") == "<s>[S]Help.\n[U]Hi\n"
    assert by_jinja(template, SYSTEM, USER, bos_token="<s>") == "<s>[S]Be brief.\n[U]Hi\n"


def test_strip_removes_white_space_around_contents_only() -> None:
    template = Template(**BASIC | {"strip": True})
    padded = [Message("system", " a b\n"), Message("user", "\tc "), Message("assistant", "\n d")]
    assert text(template, *padded) == "<s>[S]a b\n[U]c\n[A] d</s>\n"


def test_a_tool_message_has_the_format_of_its_own() -> None:
    template = Template(**BASIC, tool="[T]{content}\n")
    assert text(template, USER, TOOL) == "<s>[U]Hi\n[T]42\n"
    assert by_jinja(template, USER, TOOL, bos_token="<s>") == "<s>[U]Hi\n[T]42\n"


def test_the_system_text_can_stand_inside_the_next_user_message() -> None:
    template = Template(**BASIC | {"system": "({content}) ", "system_in_user": True})
    messages = [SYSTEM, USER, ASSISTANT, USER]
    expected = "<s>[U](Be brief.) Hi\n[A] Hello!</s>\n[U]Hi\n"
    assert text(template, *messages) == expected
    assert by_jinja(template, *messages, bos_token="<s>", eos_token="</s>") == expected
    pieces = template.render(messages)
    assert [piece.text for piece in pieces if not piece.control] == ["Be brief.", "Hi", "Hello!", "Hi"]


def test_a_placeholder_in_a_content_is_text() -> None:
    message = Message("user", "{content} {bos} {eos}")
    assert text(Template(**BASIC), message) == "<s>[U]{content} {bos} {eos}\n"


@pytest.mark.parametrize(
    ("change", "messages", "error"),
    [
        ({}, [USER, TOOL], "the template 'basic' has no place for a tool message"),
        ({"system": None}, [SYSTEM, USER], "the template 'basic' has no place for a system message"),
        ({"system_in_user": True}, [SYSTEM, SYSTEM, USER], "the template 'basic' has no place for a system message"),
        (
            {"system_in_user": True},
            [SYSTEM, ASSISTANT],
            "the template 'basic' writes the system text into a user message, and there is none",
        ),
    ],
)
def test_a_message_without_a_place_is_refused_by_both_forms(
    change: dict[str, Any], messages: list[Message], error: str
) -> None:
    template = Template(**BASIC | change)
    with pytest.raises(DataError, match=error):
        template.render(messages)
    with pytest.raises(TemplateError, match=error):
        by_jinja(template, *messages)


def test_stops_have_the_tokenizers_token_filled_in() -> None:
    template = Template(**BASIC | {"stop": ("{eos}", "[U]")})
    assert template.stops(eos="</s>") == ("</s>", "[U]")


def test_controls_are_all_that_a_template_may_write() -> None:
    template = Template(**BASIC, tool="[T]{content}", default_system="Help.")
    for form in ("{bos}", "[S]", "[U]", "[A]", " {content}{eos}", "[T]"):
        assert form in template.controls()
    assert "Help." not in template.controls()


@pytest.mark.parametrize("mark", ['"', "'", "\\", "\\n", "\r\n\t", "{{ x }}", "{% if %}", "{# #}", "é｜🙂", "{0}"])
def test_the_jinja_form_spells_any_format(mark: str) -> None:
    template = Template(
        name="odd",
        source="https://example.com",
        start=mark,
        system=mark + "{content}" + mark,
        user=mark + "{content}" + mark,
        assistant=mark,
        reply=mark + "{content}" + mark,
        after_reply=mark,
        default_system=mark,
        stop=(mark,),
    )
    for reply in (False, True):
        assert by_jinja(template, USER, ASSISTANT, reply=reply) == text(template, USER, ASSISTANT, reply=reply)


def test_the_jinja_form_needs_no_bos_and_no_eos() -> None:
    template = Template(**BASIC | {"user": "{bos}[U]{content}\n"})
    assert by_jinja(template, USER, ASSISTANT) == "[U]Hi\n[A] Hello!\n"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"user": "[U]"}, "user must hold {content} exactly once"),
        ({"user": "{content}{content}"}, "user must hold {content} exactly once"),
        ({"system": "[S]"}, "system must hold {content} exactly once"),
        ({"tool": "[T]"}, "tool must hold {content} exactly once"),
        ({"reply": "{eos}"}, "reply must hold {content} exactly once"),
        ({"assistant": "[A] {content}"}, "assistant must not hold {content}; only messages do"),
        ({"start": "{content}"}, "start must not hold {content}; only messages do"),
        ({"after_reply": "{content}"}, "after_reply must not hold {content}; only messages do"),
        ({"reply": "{content}{eos}\n"}, "reply must end with the first of stop, so that it is learned"),
        ({"stop": ("[U]", "{eos}")}, "reply must end with the first of stop, so that it is learned"),
        ({"stop": ()}, "reply must end with the first of stop, so that it is learned"),
        ({"system": None, "default_system": "Help."}, "default_system needs system, the format of system messages"),
    ],
)
def test_a_template_that_could_not_be_learned_is_refused(change: dict[str, Any], error: str) -> None:
    with pytest.raises(PluginError) as caught:
        Template(**BASIC | change)
    assert str(caught.value) == f"template 'basic': {error}"
