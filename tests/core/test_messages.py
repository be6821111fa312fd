"""Tools, calls, reasoning and weights in messages."""

import json
from typing import Any

import pytest
from lmf import Conversation, DataError, Message, ToolCall
from lmf.formats.known import FORMATS

NAMES = {form.name: form for form in FORMATS}
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
FROM_HI, FROM_HELLO = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
ADD_TOOL = {"type": "function", "function": ADD}


def read(*items: Any, **keys: Any) -> Conversation:
    found = NAMES["messages"].read({"messages": list(items), **keys})
    assert isinstance(found, Conversation)
    return found


def read_from(*items: Any, **keys: Any) -> Conversation:
    found = NAMES["sharegpt"].read({"conversations": list(items), **keys})
    assert isinstance(found, Conversation)
    return found


def refusal(*items: Any, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(*items, **keys)
    return str(caught.value)


# Declarations

DECLARED = {
    "whole": [ADD_TOOL],
    "bare": [ADD],
    "a list as text": json.dumps([ADD_TOOL]),
    "bare ones as text": json.dumps([ADD]),
    "texts in a list, as LMFlow has them": [json.dumps(ADD)],
    "without a type": [{"function": ADD}],
    "with the type outside, as in the Responses API": [{"type": "function"} | ADD],
}


@pytest.mark.parametrize("tools", DECLARED.values(), ids=DECLARED)
def test_tools_are_read_in_every_form_as_openai_has_them(tools):
    assert read(HI, HELLO, tools=tools).tools == (ADD_TOOL,)
    assert read_from(FROM_HI, FROM_HELLO, tools=tools).tools == (ADD_TOOL,)


def test_older_functions_are_tools():
    assert read(HI, HELLO, functions=[ADD]).tools == (ADD_TOOL,)


def test_what_a_declaration_holds_besides_is_kept():
    strict = {"type": "function", "function": ADD | {"strict": True}}
    assert read(HI, HELLO, tools=[strict]).tools == (strict,)


BAD_TOOLS = {
    "an object": (ADD, "tools is an object; it must be a list."),
    "text": ("add", "tools: not valid JSON at column 1: Expecting value."),
    "numbers": ([1], "tools[0] is the number 1; it must be an object that declares a tool."),
    "no name": ([{"description": "x"}], "tools[0] has no key 'name'; its keys are ['description']."),
    "name null": ([{"name": None}], "tools[0].name is null; it must be a text."),
    "name empty": ([{"name": " "}], "tools[0].name is empty; a tool has a name."),
    "no inner name": ([{"function": {}}], "tools[0].function has no key 'name'; its keys are []."),
    "function is a text": (
        [{"function": "add"}],
        "tools[0].function is the text 'add'; it must be an object with 'name' and 'parameters'.",
    ),
    "another type": (
        [{"type": "web_search"}],
        "tools[0].type is the text 'web_search'; lmf knows tools of the type function.",
    ),
    "parameters as text": (
        [{"name": "add", "parameters": "{}"}],
        "tools[0].parameters is the text '{}'; it must be an object, a JSON schema.",
    ),
    "a key twice": (
        '[{"name": "a", "name": "b"}]',
        "tools: not valid JSON: the key 'name' stands twice in one object; keep one of them.",
    ),
}


@pytest.mark.parametrize(("tools", "words"), BAD_TOOLS.values(), ids=BAD_TOOLS)
def test_a_bad_declaration_is_refused(tools, words):
    assert refusal(HI, HELLO, tools=tools) == words


def test_tools_are_declared_once():
    assert refusal(HI, HELLO, tools=[ADD], functions=[ADD]) == (
        "tools and functions both declare the tools; keep one of them."
    )


# Calls

CALL = ToolCall("add", {"a": [1, 2.5], "b": "ü"})
TEXT = json.dumps(CALL.arguments)
CALLED = {
    "arguments as text": {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": TEXT}}]},
    "arguments as an object": {"tool_calls": [{"function": {"name": "add", "arguments": CALL.arguments}}]},
    "a bare call": {"tool_calls": [{"name": "add", "arguments": CALL.arguments}]},
    "calls as text": {"tool_calls": json.dumps([{"name": "add", "arguments": CALL.arguments}])},
    "the older function_call": {"function_call": {"name": "add", "arguments": TEXT}},
}


@pytest.mark.parametrize("keys", CALLED.values(), ids=CALLED)
@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}, {"content": "Let me see."}])
def test_calls_are_read_in_every_form_with_or_without_text(keys, content):
    text = content.get("content") or ""
    talk = read(HI, {"role": "assistant", **content, **keys})
    assert talk.messages[1] == Message("assistant", text, calls=(CALL,))


def test_parallel_calls_and_their_results_keep_their_ids_and_names():
    talk = read(
        HI,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}},
                {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": [{"type": "text", "text": "1"}]},
        HELLO,
        parallel_tool_calls=True,
    )
    assert talk.messages[1:4] == (
        Message("assistant", "", calls=(ToolCall("add", {}, "c1"), ToolCall("sub", {}, "c2"))),
        Message("tool", "2", call_id="c2"),
        Message("tool", "1", name="add", call_id="c1"),
    )


def test_the_older_function_role_is_the_result():
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": TEXT}}
    for result in ({"role": "function", "name": "add", "content": "5"}, {"role": "function", "content": "5"}):
        assert read(HI, call, result, HELLO).messages[2] == Message("tool", "5", name=result.get("name", ""))


def test_lmflow_calls_by_the_role_function_and_answers_by_observation():
    call, result = {"role": "function", "content": "[get_weather()]"}, {"role": "observation", "content": "sunny"}
    talk = read(HI, call, result, call, result, HELLO)
    said = (Message("assistant", "[get_weather()]"), Message("tool", "sunny"))
    assert talk.messages[1:5] == said + said


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("function", "if it is a tool's result, give it the key 'name'."),
        ("function_call", "write the call into messages[1], as tool_calls."),
    ],
)
def test_a_call_behind_a_reply_is_refused_by_the_role_that_was_written(name, remedy):
    assert refusal(HI, HELLO, {"role": name, "content": "5"}, HELLO) == (
        f"messages[2]: the role {name} is a call by the assistant and cannot follow assistant; {remedy}"
    )


def test_sharegpt_calls_by_json_in_a_turn_of_its_own():
    one = {"from": "function_call", "value": ' {"name": "add", "arguments": {"a": 1}}'}
    two = {"from": "function_call", "value": '[{"name": "add", "arguments": "{}"}, {"name": "sub", "arguments": {}}]'}
    talk = read_from(
        FROM_HI,
        one,
        {"from": "observation", "value": "1"},
        two,
        {"from": "tool", "value": "2"},
        {"from": "function", "value": "3"},
        FROM_HELLO,
    )
    assert talk.messages[1:6] == (
        Message("assistant", "", calls=(ToolCall("add", {"a": 1}),)),
        Message("tool", "1"),
        Message("assistant", "", calls=(ToolCall("add", {}), ToolCall("sub", {}))),
        Message("tool", "2"),
        Message("tool", "3"),
    )


BAD_CALLS = {
    "an object": ({"name": "add"}, "messages[1].tool_calls is an object; it must be a list."),
    "a number": ([1], "messages[1].tool_calls[0] is the number 1; it must be an object that calls a tool."),
    "no name": ([{"arguments": {}}], "messages[1].tool_calls[0] has no key 'name'; its keys are ['arguments']."),
    "no arguments": (
        [{"function": {"name": "add", "arguements": {}}}],
        "messages[1].tool_calls[0].function has no key 'arguments'; its keys are ['name', 'arguements'].",
    ),
    "arguments in a list": (
        [{"function": {"name": "add", "arguments": [1]}}],
        "messages[1].tool_calls[0].function.arguments is a list; it must be an object, or its JSON text.",
    ),
    "arguments are a number": (
        [{"function": {"name": "add", "arguments": "5"}}],
        "messages[1].tool_calls[0].function.arguments is the number 5; it must be an object, or its JSON text.",
    ),
    "arguments cut off": (
        [{"function": {"name": "add", "arguments": '{"a": '}}],
        "messages[1].tool_calls[0].function.arguments: not valid JSON at column 6:"
        " it ends in the middle of a value (Expecting value).",
    ),
    "arguments with NaN": (
        [{"name": "add", "arguments": '{"a": NaN}'}],
        "messages[1].tool_calls[0].arguments: not valid JSON: NaN is not JSON; write null or a number.",
    ),
    "arguments with half a character": (
        [{"name": "add", "arguments": '{"a": "\\ud83d"}'}],
        r"messages[1].tool_calls[0].arguments: not valid JSON: a string holds \ud83d, half of a surrogate pair;"
        " it is no character.",
    ),
    "another type": (
        [{"type": "custom", "name": "add"}],
        "messages[1].tool_calls[0].type is the text 'custom'; lmf knows calls of the type function.",
    ),
    "an id that is a number": (
        [{"id": 1, "name": "add", "arguments": {}}],
        "messages[1].tool_calls[0].id is the number 1; it must be a text.",
    ),
    "an id twice": (
        [{"id": "c", "name": "add", "arguments": {}}] * 2,
        "messages[1].tool_calls[0].id 'c' is that of another call too; each has its own.",
    ),
}


@pytest.mark.parametrize(("calls", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_is_refused_with_its_key_path(calls, words):
    assert refusal(HI, {"role": "assistant", "content": "", "tool_calls": calls}) == words


BAD_WORDS = {
    "cut off": (
        '{"name": "add", "arguments": {',
        "conversations[1].value: not valid JSON at column 31: it ends in the middle of a value"
        " (Expecting property name enclosed in double quotes).",
    ),
    "no call": ('{"a": 1}', "conversations[1].value has no key 'name'; its keys are ['a']."),
    "no calls": ("[]", "conversations[1].value is an empty list; it must hold a call."),
}


@pytest.mark.parametrize(("value", "words"), BAD_WORDS.values(), ids=BAD_WORDS)
def test_json_that_is_no_call_is_not_taken_for_words(value, words):
    with pytest.raises(DataError) as caught:
        read_from(FROM_HI, {"from": "function_call", "value": value})
    assert str(caught.value).startswith(words.removesuffix("."))


SILENT = {
    "calls of a user": (
        HI | {"tool_calls": [{"name": "add", "arguments": {}}]},
        "messages[0].tool_calls: a message of the role user has none; only the assistant reasons and calls.",
    ),
    "reasoning of a user": (
        HI | {"thinking": "Hm."},
        "messages[0].thinking: a message of the role user has none; only the assistant reasons and calls.",
    ),
    "a user who answers a call": (
        HI | {"tool_call_id": "c1"},
        "messages[0].tool_call_id: only the result of a tool, a message of the role tool, answers a call.",
    ),
    "a trained user": (
        HI | {"train": True},
        "messages[0].train is true; only assistant messages are learned, not user.",
    ),
    "a weighted user": (
        HI | {"weight": 0.5},
        "messages[0].weight is the number 0.5; only assistant messages are learned, not user.",
    ),
}


@pytest.mark.parametrize(("message", "words"), SILENT.values(), ids=SILENT)
def test_only_the_assistant_calls_reasons_and_is_learned(message, words):
    assert refusal(message, HELLO) == words


def test_two_kinds_of_calls_in_one_message_are_refused():
    call = {"name": "add", "arguments": {}}
    assert refusal(HI, HELLO | {"tool_calls": [call], "function_call": call}) == (
        "messages[1].function_call and messages[1].tool_calls both call tools; keep one of them."
    )
    assert refusal(HI, {"role": "function", "content": "", "tool_calls": [call]}) == (
        "messages[1] calls tools twice: by its role and by a key of its own."
    )


# Reasoning and weights


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(key):
    assert read(HI, HELLO | {key: "Hm."}).messages[1] == Message("assistant", "Hello!", "Hm.")


def test_reasoning_twice_must_agree():
    assert read(HI, HELLO | {"reasoning": "Hm.", "reasoning_content": "Hm."}).messages[1].reasoning == "Hm."
    assert refusal(HI, HELLO | {"reasoning": "Hm.", "thinking": "Ah."}) == (
        "messages[1] has reasoning and thinking, which differ; keep one of them."
    )


WEIGHTS = [
    ({}, 1.0),
    ({"train": False}, 0.0),
    ({"train": True}, 1.0),
    ({"weight": 0}, 0.0),
    ({"weight": 2.5}, 2.5),
    ({"weight": None, "train": None}, 1.0),
    ({"weight": 2, "train": True}, 2.0),
]


@pytest.mark.parametrize(("keys", "weight"), WEIGHTS)
def test_a_reply_counts_as_train_and_weight_say(keys, weight):
    assert read(HI, HELLO | keys, HI, HELLO).messages[1].weight == weight
    assert read_from(FROM_HI, FROM_HELLO | keys, FROM_HI, FROM_HELLO).messages[1].weight == weight


BAD_WEIGHTS = {
    "negative": ({"weight": -1}, "messages[1].weight is the number -1; it must be at least 0."),
    "text": ({"weight": "1"}, "messages[1].weight is the text '1'; it must be a number."),
    "true": ({"weight": True}, "messages[1].weight is true; it must be a number."),
    "train as a number": ({"train": 1}, "messages[1].train is the number 1; it must be true or false."),
    "contradiction": (
        {"train": False, "weight": 2},
        "messages[1].train is false and messages[1].weight is the number 2; keep one of them.",
    ),
}


@pytest.mark.parametrize(("keys", "words"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_a_bad_weight_is_refused(keys, words):
    assert refusal(HI, HELLO | keys) == words


def test_a_weight_beyond_all_floats_is_refused():
    assert refusal(HI, HELLO | {"weight": 10**400}).endswith("; no number in the data may be that large.")


@pytest.mark.parametrize("keys", [{"train": False}, {"weight": 0}, {"weight": None}, {"reasoning": ""}])
def test_saying_that_a_user_is_not_learned_does_no_harm(keys):
    assert read(HI | keys, HELLO).messages[0] == Message("user", "Hi")


@pytest.mark.parametrize("where", ["arguments", "parameters"])
def test_tools_may_be_nested_a_hundred_levels_deep_and_no_deeper(where):
    def nested(levels: int) -> Any:
        value: Any = {}
        for _ in range(levels - 1):
            value = {"a": value}
        return value

    def talk(value: Any) -> Conversation:
        if where == "parameters":
            return read(HI, HELLO, tools=[{"type": "function", "function": {"name": "f", "parameters": value}}])
        call = {"type": "function", "function": {"name": "f", "arguments": value}}
        return read(HI, {"role": "assistant", "tool_calls": [call]})

    deepest = 100 if where == "arguments" else 98
    talk(nested(deepest))
    for levels in (deepest + 1, 600, 900, 100_000):
        with pytest.raises(DataError, match="is nested more than 100 levels deep"):
            talk(nested(levels))
