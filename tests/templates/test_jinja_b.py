"""The Jinja templates of Llama, Mistral, Cohere, OpenAI, Phi-4, OLMo and Falcon against the official ones.

``official_b.json`` holds what the official templates write. ``expected`` says where ours differ and why,
``REFUSED`` what ours refuse though the official ones write something.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from lmf import Conversation, DataError, JinjaTemplate, Message, Piece, ToolCall
from lmf_templates import cohere, falcon, gpt_oss, llama_tools, mistral_tools, olmo, phi4
from transformers.utils.chat_template_utils import render_jinja_template

OFFICIAL = json.loads(Path(__file__).with_name("official_b.json").read_text(encoding="utf-8"))
LINES = (llama_tools, mistral_tools, cohere, gpt_oss, phi4, olmo, falcon)
TEMPLATES: dict[str, JinjaTemplate] = {template.name: template for line in LINES for template in line.TEMPLATES}
CASES = [(name, talk) for name, official in OFFICIAL["templates"].items() for talk in official["texts"]]

REFUSED = {
    # the official template drops the content
    ("llama3_1", "call with content"): "content beside a call",
    ("llama3_1", "content before a call is dropped"): "content beside a call",
    ("llama3_2", "call with content"): "content beside a call",
    ("llama3_2", "content before a call is dropped"): "content beside a call",
    # the official template drops all calls but the first
    ("gpt_oss", "parallel calls"): "several calls at once",
    ("gpt_oss", "parallel calls, results"): "several calls at once",
    ("gpt_oss", "parallel calls with content"): "several calls at once",
    # the official template drops the message
    ("gpt_oss", "system in the middle"): "a system message at this point",
    ("gpt_oss", "system after a question"): "a system message at this point",
    ("gpt_oss", "system in the middle, tools"): "a system message at this point",
    ("falcon3", "system in the middle, tools"): "a system message",
    # mistral_common moves the text to the other system text
    ("mistral_v3", "system after a question"): "a message of the role system at this point",
    ("mistral_v3_tekken", "system after a question"): "a message of the role system at this point",
}

ACCEPTED = [case for case in CASES if case not in REFUSED]
SAID = {talk: record["messages"] for talk, record in OFFICIAL["conversations"].items()}
each_template = pytest.mark.parametrize("name", TEMPLATES)
each_case = pytest.mark.parametrize(("name", "talk"), ACCEPTED)
each_reply = pytest.mark.parametrize(
    ("name", "talk"), [(name, talk) for name, talk in ACCEPTED if SAID[talk][-1]["role"] == "assistant"]
)


def expected(name: str, talk: str) -> tuple[str, str]:
    """Return the official prompt for the last reply and the official text, changed where ours differ on purpose."""
    official = OFFICIAL["templates"][name]["texts"][talk]
    text = spelled_out(official["text"])
    prompt = spelled_out(official["prompt"]) if "prompt" in official else text[: official.get("reply")]
    prompt, text = adapted(name, prompt), adapted(name, text)
    if name == "gpt_oss" and "prompt" in official:
        # A thought stays until its turn is over, for it stands in the prompt for the last reply of the turn.
        result = prompt[prompt.rindex("<|start|>functions.") :]
        text = prompt + text[text.rindex(result) + len(result) :]
    return prompt, text


def adapted(name: str, text: str) -> str:
    if name == "phi4_mini":  # a conversation that goes on must begin with the same text
        text = text.removesuffix("<|endoftext|>")
    if name == "falcon3":  # the official text lacks the header of a call without content; the prompt for it has one
        text = text.replace("\n\n<tool_call>\n[\n  {\n    ", "\n<|assistant|>\n<tool_call>\n[\n  {\n    ")
    if name == "command_r" and "# Safety Preamble" in text:
        # The official template is made for prompts alone. It writes the instruction for a reply behind the reply,
        # does not end calls, and finds no type inside a list.
        turn, end = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
        if text.endswith(end):
            text, _, instruction = text.removesuffix(end).rpartition(turn)
            before, chatbot, reply = text.rpartition(f"{turn}<|CHATBOT_TOKEN|>")
            text = before + turn + instruction + end + chatbot + reply
        text = re.sub(r"\]```\n(?=<\|START|\Z)", f"]```\n{end}", text)
        types = ["List[str]", "List[int]", "List[Any]", "List[Dict[str, Any]]", "List[Dict[str, Any]]", "Any"] * 2
        text = re.sub(r"List\[Union\[\]\]|Union\[\]", lambda match: types.pop(0), text)
    return text


def spelled_out(text: str) -> str:
    return re.sub(r"§(\d+)§", lambda match: OFFICIAL["parts"][int(match[1])], text)


def tokens(name: str) -> dict[str, Any]:
    return {key: OFFICIAL["templates"][name][key] for key in ("bos", "eos")}


def talks(name: str) -> list[str]:
    return [talk for template, talk in ACCEPTED if template == name]


def conversation(talk: str) -> Conversation:
    tools = OFFICIAL["tools"].get(OFFICIAL["conversations"][talk].get("tools"), ())
    return Conversation(tuple(map(message, SAID[talk])), tuple(tools))


def message(said: dict[str, Any]) -> Message:
    calls = [(call["function"], call["id"]) for call in said.get("tool_calls", ())]
    return Message(
        said["role"],
        said["content"],
        reasoning=said.get("reasoning_content", ""),
        calls=tuple(ToolCall(function["name"], function["arguments"], id) for function, id in calls),
        name=said.get("name", ""),
        call_id=said.get("tool_call_id", ""),
    )


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def render(name: str, *messages: Message, **options: Any) -> str:
    return text(TEMPLATES[name].render(messages, **tokens(name), **options))


@each_case
def test_the_text_is_the_official_one(name: str, talk: str) -> None:
    said = conversation(talk)
    prompt = said.messages[-1].role != "assistant"
    assert render(name, *said.messages, tools=said.tools, reply=prompt) == expected(name, talk)[1]


@each_reply
def test_the_last_reply_is_trained_from_where_the_official_prompt_ends_to_its_end(name: str, talk: str) -> None:
    prompt, whole = expected(name, talk)
    pieces = TEMPLATES[name].examples(conversation(talk), **tokens(name))[-1]
    last = max(i for i, piece in enumerate(pieces) if piece.learned)
    assert text(pieces[:last]) == prompt
    assert whole.startswith(prompt + pieces[last].text)
    assert pieces[last].text.endswith(TEMPLATES[name].stops(tokens(name)["eos"]))
    assert whole[len(prompt + pieces[last].text) :].strip() == ""


@each_template
def test_each_reply_is_trained_once_behind_the_prompt_that_asks_for_it(name: str) -> None:
    for talk in talks(name):
        said = conversation(talk)
        learned = [
            (text(pieces[:i]), piece.text)
            for pieces in TEMPLATES[name].examples(said, **tokens(name))
            for i, piece in enumerate(pieces)
            if piece.learned
        ]
        replies = [i for i, message in enumerate(said.messages) if message.role == "assistant"]
        for i, (prompt, reply) in zip(replies, learned, strict=True):
            assert prompt == render(name, *said.messages[:i], tools=said.tools, reply=True)
            assert render(name, *said.messages[: i + 1], tools=said.tools).startswith(prompt + reply)
            assert reply.endswith(TEMPLATES[name].stops(tokens(name)["eos"]))


@each_template
def test_transformers_writes_the_same_and_finds_one_mark_for_each_reply(name: str) -> None:
    for talk in talks(name):
        said = conversation(talk)
        prompt = SAID[talk][-1]["role"] != "assistant"
        rendered, marks = render_jinja_template(
            conversations=[SAID[talk]],
            tools=[dict(tool) for tool in said.tools] or None,
            chat_template=TEMPLATES[name].jinja(),
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            bos_token=tokens(name)["bos"],
            eos_token=tokens(name)["eos"],
        )
        assert rendered[0] == render(name, *said.messages, tools=said.tools, reply=prompt)
        assert len(marks[0]) == sum(message["role"] == "assistant" for message in SAID[talk])


@pytest.mark.parametrize(("name", "talk"), REFUSED)
def test_what_the_official_template_drops_or_moves_is_refused(name: str, talk: str) -> None:
    said = conversation(talk)
    with pytest.raises(DataError, match=f"the template {name} has no place for {REFUSED[name, talk]}$"):
        TEMPLATES[name].examples(said, **tokens(name))


@each_template
def test_a_role_that_nobody_has_is_refused_by_name(name: str) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}]
    with pytest.raises(TemplateError, match=f"the template {name} has no place for a .*critic"):
        render_jinja_template(conversations=[said], chat_template=TEMPLATES[name].jinja())


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"gpt_oss"}))
def test_reasoning_is_refused_unless_it_is_to_be_left_out(name: str) -> None:
    said = [Message("user", "1+1?"), Message("assistant", "2", reasoning="Add them.")]
    with pytest.raises(DataError, match=f"the template {name} has no place for reasoning"):
        render(name, *said)
    quiet = with_variables(name, enable_thinking=False)
    assert text(quiet.render(said, **tokens(name))) == render(name, Message("user", "1+1?"), Message("assistant", "2"))


@pytest.mark.parametrize("name", ["phi4", "olmo2"])
def test_formats_without_tools_refuse_them(name: str) -> None:
    ask = Message("user", "Weather?")
    call = Message("assistant", "", calls=(ToolCall("get_weather", {}),))
    with pytest.raises(DataError, match=f"the template {name} has no place for tools"):
        render(name, ask, tools=OFFICIAL["tools"]["weather"])
    with pytest.raises(DataError, match=f"the template {name} has no place for calls"):
        render(name, ask, call)
    with pytest.raises(DataError, match=f"the template {name} has no place for a tool message"):
        render(name, ask, Message("tool", "sunny"))


@pytest.mark.parametrize("name", ["llama3_1", "llama4", "mistral_v3", "mistral_v7_tekken"])
def test_tools_need_the_user_message_that_they_stand_in(name: str) -> None:
    with pytest.raises(DataError, match=f"the template {name} has no place for tools without a .*user message"):
        render(name, Message("system", "s"), tools=OFFICIAL["tools"]["weather"], reply=True)


@pytest.mark.parametrize("name", ["mistral_v3", "mistral_v3_tekken", "mistral_v7", "mistral_v7_tekken"])
@pytest.mark.parametrize("id", ["", "call_0123456789"])
def test_mistral_refuses_calls_with_ids_that_are_not_its_own(name: str, id: str) -> None:
    said = Conversation(
        (
            Message("user", "Weather?"),
            Message("assistant", "", calls=(ToolCall("get_weather", {}, id),)),
            Message("tool", "sunny", call_id=id),
            Message("assistant", "Sunny."),
        )
    )
    with pytest.raises(
        DataError, match=f"the template {name} has no place for call ids that are not 9 characters long"
    ):
        TEMPLATES[name].examples(said, **tokens(name))


# a tool's result, and what mistral-common 1.13.1 writes for it
RESULTS = {
    **{text: text for text in ('{"a": 1}', "[]", "[1, 2]", "true", "null", "-1.5", "NaN")},
    **{text: text for text in ('"x"', r'"a\nb"', '{"a": "}{"}')},
    "": "{}",
    " true ": "true",
    "sunny": '"sunny"',
    "12:00": '"12:00"',
    "{oops}": '"{oops}"',
    "[a]": '"[a]"',
    "[1 2]": '"[1 2]"',
    "{'a': 1}": "\"{'a': 1}\"",
    '{"a": 1,}': r'"{\"a\": 1,}"',
    '{"a": [1, 2}': r'"{\"a\": [1, 2}"',
    '{"a": 1}\n{"a": 2}': r'"{\"a\": 1}\n{\"a\": 2}"',
    '"a" "b"': r'"\"a\" \"b\""',
    '"a': r'"\"a"',
    "01": '"01"',
    "1_0": '"1_0"',
    "5.": '"5."',
}
# what ours writes, and mistral-common; docs/templates.md tells of each
OTHER_RESULTS = {
    '{"a":1}': ('{"a":1}', '{"a": 1}'),
    "[\n  1\n]": ("[\n  1\n]", "[1]"),
    "1.50": ("1.50", "1.5"),
    "1e3": ("1e3", "1000.0"),
    r'{"a": "\u00e9"}': (r'{"a": "\u00e9"}', '{"a": "é"}'),
    '{"a": 1, "a": 2}': ('{"a": 1, "a": 2}', '{"a": 2}'),
    "[01]": ("[01]", '"[01]"'),
}


@pytest.mark.parametrize(
    ("result", "written"), [*RESULTS.items(), *((result, ours) for result, (ours, _) in OTHER_RESULTS.items())]
)
def test_mistral_writes_the_result_of_a_tool_as_json(result: str, written: str) -> None:
    call = Message("assistant", "", calls=(ToolCall("now", {}, "call00001"),))
    told = (Message("user", "a"), call, Message("tool", result, call_id="call00001"), Message("assistant", "b"))
    expected = f'[TOOL_RESULTS]{{"content": {written}, "call_id": "call00001"}}[/TOOL_RESULTS]'
    assert expected in render("mistral_v3_tekken", *told)
    assert f"[TOOL_CONTENT]{result}[/TOOL_RESULTS]" in render("mistral_v7_tekken", *told)


def test_a_result_that_mistral_common_writes_otherwise_is_the_same_value_there() -> None:
    for result, (ours, theirs) in list(OTHER_RESULTS.items())[:-1]:
        assert json.loads(ours) == json.loads(theirs), result


def test_mistral_leaves_an_id_out_where_a_conversation_ends_with_a_call_that_has_none() -> None:
    call = Message("assistant", "", calls=(ToolCall("now", {}),))
    assert render("mistral_v3", Message("user", "a"), call).endswith(
        '[TOOL_CALLS] [{"name": "now", "arguments": {}}]</s>'
    )


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("llama3_1", "Today Date: 26 Jul 2024\n"),
        ("llama3_2", "Today Date: 26 Jul 2024\n"),
        ("gpt_oss", "date: 2025-06-28\n"),
    ],
)
def test_the_date_is_fixed_unless_one_is_given(name: str, date: str) -> None:
    assert date in render(name, Message("user", "a"), reply=True)
    dated = with_variables(name, date_string="some day")
    changed = text(dated.render([Message("user", "a")], reply=True, **tokens(name)))
    assert changed == render(name, Message("user", "a"), reply=True).replace(date.split(": ")[1], "some day\n")


def test_gpt_oss_keeps_the_reasoning_of_earlier_turns_on_request() -> None:
    said = conversation("reasoning in both turns")
    kept = text(with_variables("gpt_oss", keep_reasoning=True).render(said.messages))
    assert re.findall(r"analysis<\|message\|>(.*?)<\|end\|>", kept) == ["first", "second"]
    assert re.findall(r"analysis<\|message\|>(.*?)<\|end\|>", render("gpt_oss", *said.messages)) == ["second"]


def test_gpt_oss_makes_an_example_of_each_reply_also_where_reasoning_is_kept() -> None:
    said = conversation("reasoning in both turns")
    kept = with_variables("gpt_oss", keep_reasoning=True).examples(said, **tokens("gpt_oss"))
    thoughts = [re.findall(r"analysis<\|message\|>(.*?)<\|end\|>", text(pieces)) for pieces in kept]
    assert thoughts == [["first"], ["first", "second"]]


def test_gpt_oss_reads_a_thought_in_the_content_as_one_apart_from_it() -> None:
    inside = [Message("user", "1+1?"), Message("assistant", "<think>\nAdd.\n</think>\n\n2")]
    apart = [inside[0], Message("assistant", "2", reasoning="Add.")]
    assert render("gpt_oss", *inside) == render("gpt_oss", *apart)
    quiet = with_variables("gpt_oss", enable_thinking=False)
    assert text(quiet.render(inside)) == text(quiet.render([inside[0], Message("assistant", "2")]))


def test_gpt_oss_leaves_reasoning_out_on_request() -> None:
    said = conversation("reasoning around a call")
    quiet = with_variables("gpt_oss", enable_thinking=False)
    assert "analysis<|message|>" not in text(quiet.render(said.messages, tools=said.tools))


def with_variables(name: str, **variables: Any) -> JinjaTemplate:
    return dataclasses.replace(TEMPLATES[name], variables=variables)


def test_every_template_has_a_reference() -> None:
    assert set(OFFICIAL["templates"]) == set(TEMPLATES)


@each_template
def test_the_special_tokens_are_those_that_the_text_spells(name: str) -> None:
    everything = "".join(
        render(name, *conversation(talk).messages, tools=conversation(talk).tools)
        for talk in talks(name)
        if "spelled" not in talk
    )
    spelled = set(re.findall(r"<\|/?[a-zA-Z_]+\|>|\[/?[A-Z]+_?[A-Z]*\]", everything)) - set(tokens(name).values())
    if name in ("olmo2", "falcon3"):  # their marks are plain text to their models
        assert TEMPLATES[name].tokens == ()
    else:
        assert spelled | set(tokens(name).values()) >= set(TEMPLATES[name].tokens) >= spelled
