"""Calls of tools are read in what a model writes, in the notation that its template has."""

import pytest
from lmf import Conversation, JinjaTemplate, Message, Plugins, Template, ToolCall
from lmf.templates.calls import Notation, notation
from lmf.templates.traits import SAMPLES, takes

PLUGINS = Plugins()
CALLING = [name for name, template in PLUGINS.templates.items() if takes(template, SAMPLES["a tool call"])]
UNREADABLE = {"chatglm3"}  # it writes Python, and no JSON
BOS, EOS = "<BOS>", "<EOS>"
TOOLS = tuple(
    {
        "type": "function",
        "function": {"name": name, "description": name, "parameters": {"type": "object", "properties": {}}},
    }
    for name in ("find_book", "add")
)
ONE = ToolCall("find_book", {"title": 'The "Sea" {of} [1]\nLight', "year": 1999, "tags": ["a", None]}, "abcdefgh1")
TWO = ToolCall("add", {"numbers": [1, 2.5]}, "abcdefgh2")


def written(name: str, said: str, *calls: ToolCall) -> str | None:
    """What a template writes as the first reply, without what ends it; None if it has no place for that."""
    template = PLUGINS.templates[name]
    results = [Message("tool", "{}", name=call.name, call_id=call.id) for call in calls]
    talk = (Message("user", "Do."), Message("assistant", said, calls=calls), *results, Message("assistant", "Done."))
    try:
        pieces = template.examples(Conversation(talk, TOOLS), bos=BOS, eos=EOS)[0]
    except Exception as error:
        assert "has no place" in str(error) or "fails" in str(error) or "drops" in str(error), error
        return None
    text = ""
    for piece in pieces:
        if piece.learned:
            text += piece.text
        elif text:
            break
    for stop in template.stops(EOS):
        text = text.removesuffix(stop)
    return text


def read(name: str, text: str) -> tuple[str, list[tuple[str, dict]]]:
    found = notation(PLUGINS.templates[name])
    assert found
    said, calls = found.read(text, ["find_book", "add"])
    return said, [(call.name, dict(call.arguments)) for call in calls]


def meant(*calls: ToolCall) -> list[tuple[str, dict]]:
    return [(call.name, dict(call.arguments)) for call in calls]


def test_most_templates_with_tools_are_readable():
    assert len(CALLING) > 20
    assert {name for name in CALLING if notation(PLUGINS.templates[name]) is None} == UNREADABLE


@pytest.mark.parametrize("name", sorted(set(CALLING) - UNREADABLE))
def test_what_a_template_writes_is_read_as_it_was_meant(name):
    text = written(name, "", ONE)
    assert text
    assert read(name, text)[1] == meant(ONE)
    if both := written(name, "", ONE, TWO):
        assert read(name, both)[1] == meant(ONE, TWO)
    if said := written(name, "Let me look.", TWO):
        before, calls = read(name, said)
        assert calls == meant(TWO)
        assert "Let me look." in before
        assert "add" not in before and "{" not in before


@pytest.mark.parametrize("name", sorted(set(CALLING) - UNREADABLE))
@pytest.mark.parametrize(
    "text", ["", "Plain words.", "add: 3 + 4", '{"a": 1}', "[1, 2]", '{"name": "fly", "x": {}}', "{" * 50]
)
def test_what_is_no_call_is_said(name, text):
    assert read(name, text) == (text, [])


def test_a_template_without_a_place_for_calls_has_no_notation():
    assert notation(PLUGINS.templates["alpaca"]) is None
    plain = Template(name="t", source="", user="{content}", assistant="A:", reply="{content}<E>", stop=("<E>",))
    assert notation(plain) is None


def test_the_notation_of_a_model_is_learned_from_its_own_template():
    text = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<f={{ c.function.name }}>{{ c.function.arguments | tojson }}</f>{% endfor %}"
        "<E>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}{{ tools | tojson }}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    own = JinjaTemplate(name="own", source="", text=text, stop=("<E>",), steady=True)
    found = notation(own, "<B>", "<E>")
    assert found == Notation("<f=", "<f=", ">")
    assert found.read('Yes. <f=add>{"numbers": [1]}</f><f=add>{"numbers": [2]}</f>', []) == (
        "Yes.",
        [ToolCall("add", {"numbers": [1]}), ToolCall("add", {"numbers": [2]})],
    )


def test_without_a_marker_only_a_tool_that_there_is_is_called():
    found = Notation("", "", None, "name", "parameters")
    text = '{"name": "add", "parameters": {"a": 1}}'
    assert found.read(text, ["add"])[1] == [ToolCall("add", {"a": 1})]
    assert found.read(text, ["sub"]) == (text, [])
    assert found.read("I call " + text, ["add"]) == ("I call " + text, [])


def test_arguments_may_be_json_in_a_text():
    found = Notation("<c>", "<c>", None, "name", "arguments")
    assert found.read('<c>{"name": "add", "arguments": "{\\"a\\": 1}"}', [])[1] == [ToolCall("add", {"a": 1})]
    assert found.read('<c>{"name": "add", "arguments": "a = 1"}', [])[1] == []
    assert found.read('<c>{"id": "x1", "name": "add", "arguments": {}}', [])[1] == [ToolCall("add", {}, "x1")]
