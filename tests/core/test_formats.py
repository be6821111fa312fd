"""The shapes of records and the rules of conversations, each by one accepted twin and one refused."""

import json
from typing import Any

import pytest
from lmf.errors import DataError
from lmf.formats import ALPACA, MESSAGES, SHAREGPT, TEXT, TEXT2TEXT, conversation
from lmf.specs import DataFormat
from lmf.template import Message

FORMATS = [ALPACA, MESSAGES, SHAREGPT, TEXT, TEXT2TEXT]
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
ASKED, ANSWERED = Message("user", "Hi"), Message("assistant", "Hello!")


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_example_of_a_format_matches_it_alone_and_can_be_read(form: DataFormat):
    example = json.loads(form.example)
    assert [each.name for each in FORMATS if each.matches(example)] == [form.name]
    assert isinstance(form.read(example), str if form.data == "text" else tuple)


SYSTEM = Message("system", "Be brief.")
READ = {
    "messages": (MESSAGES, {"messages": [HI, HELLO]}, (ASKED, ANSWERED)),
    "messages with a system key": (
        MESSAGES,
        {"system": "Be brief.", "messages": [HI, HELLO]},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "messages with an empty system key": (MESSAGES, {"system": "", "messages": [HI, HELLO]}, (ASKED, ANSWERED)),
    "messages with a system message": (
        MESSAGES,
        {"messages": [{"role": "system", "content": "Be brief."}, HI, HELLO]},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "an LMFlow conversation": (
        MESSAGES,
        {"conversation_id": 7, "system": None, "tools": [], "messages": [HI, HELLO, HI, HELLO]},
        (ASKED, ANSWERED, ASKED, ANSWERED),
    ),
    "messages with notes of their own": (
        MESSAGES,
        {"id": "a", "source": "web", "messages": [HI | {"name": "Ann"}, HELLO | {"tool_calls": None, "weight": 1}]},
        (ASKED, ANSWERED),
    ),
    "content in parts": (
        MESSAGES,
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                HELLO,
            ]
        },
        (ASKED, ANSWERED),
    ),
    "results of tools": (
        MESSAGES,
        {"messages": [HI, HELLO, {"role": "tool", "content": ""}, {"role": "tool", "content": "4"}, HELLO]},
        (ASKED, ANSWERED, Message("tool", ""), Message("tool", "4"), ANSWERED),
    ),
    "an empty user message after a system message": (
        MESSAGES,
        {"system": "Be brief.", "messages": [{"role": "user", "content": ""}, HELLO]},
        (SYSTEM, Message("user", ""), ANSWERED),
    ),
    "alpaca": (ALPACA, {"instruction": "Hi", "output": "Hello!"}, (ASKED, ANSWERED)),
    "alpaca with an empty input": (ALPACA, {"instruction": "Hi", "input": "", "output": "Hello!"}, (ASKED, ANSWERED)),
    "alpaca with input null": (ALPACA, {"instruction": "Hi", "input": None, "output": "Hello!"}, (ASKED, ANSWERED)),
    "alpaca with an empty instruction": (
        ALPACA,
        {"instruction": "", "input": "Hi", "output": "Hello!"},
        (ASKED, ANSWERED),
    ),
    "alpaca with an input": (
        ALPACA,
        {"instruction": "Add.", "input": "2 and 3", "output": "Hello!"},
        (Message("user", "Add.\n2 and 3"), ANSWERED),
    ),
    "alpaca with system and history": (
        ALPACA,
        {"instruction": "b?", "output": "B", "system": "Be brief.", "history": [["Hi", "Hello!"]]},
        (SYSTEM, ASKED, ANSWERED, Message("user", "b?"), Message("assistant", "B")),
    ),
    "alpaca without history": (ALPACA, {"instruction": "Hi", "output": "Hello!", "history": None}, (ASKED, ANSWERED)),
    "sharegpt": (
        SHAREGPT,
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
        },
        (SYSTEM, ASKED, ANSWERED),
    ),
    "sharegpt with a system turn": (
        SHAREGPT,
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, HELLO]},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "Qwen's conversations": (
        SHAREGPT,
        {"id": "q0", "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello!"}]},
        (ASKED, ANSWERED),
    ),
    "conversations with roles": (SHAREGPT, {"tools": "[]", "conversations": [HI, HELLO]}, (ASKED, ANSWERED)),
    "text2text": (TEXT2TEXT, {"input": "Hi", "output": "Hello!"}, (ASKED, ANSWERED)),
    "text": (TEXT, {"text": " One\r\n\u2028two ", "label": True}, " One\r\n\u2028two "),
}


@pytest.mark.parametrize(("form", "record", "expected"), READ.values(), ids=READ)
def test_a_record_is_read_as_it_is_meant(form: DataFormat, record: dict[str, Any], expected: Any):
    assert form.matches(record)
    assert form.read(record) == expected


def messages(*items: Any, **keys: Any) -> tuple[DataFormat, dict[str, Any]]:
    return MESSAGES, {"messages": list(items), **keys}


def content(value: Any) -> tuple[DataFormat, dict[str, Any]]:
    return messages(HI, {"role": "assistant", "content": value})


def alpaca(**keys: Any) -> tuple[DataFormat, dict[str, Any]]:
    return ALPACA, {"instruction": "Hi", "output": "Hello!", **keys}


def sharegpt(*items: Any, **keys: Any) -> tuple[DataFormat, dict[str, Any]]:
    return SHAREGPT, {"conversations": list(items), **keys}


RULE = "a user message may be empty only after a system message with text"
CALL = {"name": "add", "arguments": {}}
REFUSED = {
    # what a message holds
    "content null": (content(None), "messages[1].content is null; it must be a text"),
    "content number": (content(3), "messages[1].content is the number 3; it must be a text"),
    "content true": (content(True), "messages[1].content is true; it must be a text"),
    "content object": (content({"text": "x"}), "messages[1].content is an object; it must be a text"),
    "content list": (content(["x"]), "messages[1].content is a list; it must be a text"),
    "content empty list": (content([]), "messages[1].content is a list; it must be a text"),
    "image part": (content([{"type": "image_url"}]), "messages[1].content[0] is a part of the type 'image_url'"),
    "part without text": (content([{"type": "text"}]), "messages[1].content[0].text is null; it must be a text"),
    "no content": (
        messages(HI, {"role": "assistant", "contnet": ""}),
        "has no key 'content'; its keys are ['role', 'contnet']",
    ),
    "no role": (messages({"content": "Hi"}, HELLO), "messages[0] has no key 'role'"),
    "message is a text": (
        messages("Hi", HELLO),
        "messages[0] is the text 'Hi'; it must be an object with 'role' and 'content'",
    ),
    "messages is an object": ((MESSAGES, {"messages": HI}), "messages is an object; it must be a list"),
    "messages is null": ((MESSAGES, {"messages": None}), "messages is null; it must be a list"),
    "system is a list": (messages(HI, HELLO, system=["Be brief."]), "system is a list; it must be a text"),
    # roles
    "role misspelled": (
        messages({"role": "usr", "content": "Hi"}, HELLO),
        "messages[0].role is the text 'usr'; roles are system, user",
    ),
    "role misspelled, nearest": (messages({"role": "usr", "content": "Hi"}, HELLO), "Did you mean 'user'?"),
    "role null": (messages({"role": None, "content": "Hi"}, HELLO), "messages[0].role is null; roles are"),
    "role list": (messages({"role": ["user"], "content": "Hi"}, HELLO), "messages[0].role is a list; roles are"),
    "role function": (
        messages(HI, {"role": "function", "content": "{}"}),
        "'function'; lmf cannot learn from tool calls yet",
    ),
    "from function_call": (
        sharegpt(HI, {"from": "function_call", "value": "{}"}),
        "conversations[1].from is the text 'function_call'; lmf cannot",
    ),
    "from observation": (
        sharegpt(HI, {"from": "observation", "value": "{}"}),
        "conversations[1].from is the text 'observation'; lmf cannot",
    ),
    "from misspelled": (sharegpt({"from": "humn", "value": "Hi"}), "Did you mean 'human'?"),
    "no value": (sharegpt({"from": "human", "text": "Hi"}), "conversations[0] has no key 'value'"),
    "no from": (sharegpt({"value": "Hi"}), "conversations[0] has no key 'from'"),
    # the order of messages
    "no messages": (messages(), "the conversation has no messages"),
    "ends with user": (messages(HI, HELLO, HI), "ends with a user message; there is no reply to learn"),
    "ends with tool": (
        messages(HI, HELLO, {"role": "tool", "content": "4"}),
        "ends with a tool message; there is no reply",
    ),
    "only system": (messages({"role": "system", "content": "x"}), "ends with a system message; there is no reply"),
    "assistant first": (
        messages(HELLO, HI, HELLO),
        "messages[0]: a conversation cannot begin with a message of the role assistant",
    ),
    "tool first": (messages({"role": "tool", "content": "4"}, HELLO), "cannot begin with a message of the role tool"),
    "two users": (messages(HI, HI, HELLO), "messages[1]: the role user cannot follow user; assistant comes next"),
    "two assistants": (
        messages(HI, HELLO, HELLO),
        "messages[2]: the role assistant cannot follow assistant; user or tool comes next",
    ),
    "tool after user": (
        messages(HI, {"role": "tool", "content": "4"}),
        "messages[1]: the role tool cannot follow user",
    ),
    "user after tool": (
        messages(HI, HELLO, {"role": "tool", "content": "4"}, HI),
        "messages[3]: the role user cannot follow tool",
    ),
    "assistant after system": (
        messages(HELLO, system="x"),
        "messages[0]: the role assistant cannot follow system; user comes next",
    ),
    "system late": (
        messages(HI, {"role": "system", "content": "x"}, HELLO),
        "messages[1]: a system message stands only once",
    ),
    "system twice": (
        messages({"role": "system", "content": "x"}, HI, HELLO, system="x"),
        "messages[0]: a system message stands only once",
    ),
    # nothing to learn
    "empty reply": (
        messages(HI, {"role": "assistant", "content": " \n"}),
        "messages[1] is empty; there is no reply to learn",
    ),
    "empty user message": (messages({"role": "user", "content": ""}, HELLO), f"messages[0] is empty; {RULE}"),
    "empty user and system": (
        messages({"role": "system", "content": ""}, {"role": "user", "content": ""}, HELLO),
        f"messages[1] is empty; {RULE}",
    ),
    "empty later user message": (
        messages(HI, HELLO, {"role": "user", "content": " "}, HELLO, system="x"),
        f"messages[2] is empty; {RULE}",
    ),
    "empty text": ((TEXT, {"text": " \n"}), "text is empty; there is nothing to learn"),
    "text null": ((TEXT, {"text": None}), "text is null; it must be a text"),
    "empty input": ((TEXT2TEXT, {"input": "", "output": "x"}), f"input is empty; {RULE}"),
    "empty output": ((TEXT2TEXT, {"input": "x", "output": ""}), "output is empty; there is no reply to learn"),
    # alpaca
    "alpaca output null": (alpaca(output=None), "output is null; it must be a text"),
    "alpaca output pair": (alpaca(output=["good", "bad"]), "output is a list; it must be a text"),
    "alpaca output empty": (alpaca(output=""), "output is empty; there is no reply to learn"),
    "alpaca instruction null": (alpaca(instruction=None, input="x"), "instruction is null; it must be a text"),
    "alpaca nothing asked": (alpaca(instruction="", input=""), f"instruction is empty; {RULE}"),
    "alpaca input number": (alpaca(input=0), "input is the number 0; it must be a text"),
    "alpaca history text": (alpaca(history="x"), "history is the text 'x'; it must be a list"),
    "alpaca history of three": (
        alpaca(history=[["a", "b", "c"]]),
        "history[0] is a list; it must be a list of two texts",
    ),
    "alpaca history null": (alpaca(history=[["a", None]]), "history[0][1] is null; it must be a text"),
    "alpaca history empty reply": (
        alpaca(history=[["a", "b"], ["a", ""]]),
        "history[1][1] is empty; there is no reply to learn",
    ),
    "alpaca misspelled": (alpaca(Input="2 and 3"), "the key 'Input' is unknown. Did you mean 'input'?"),
    "system misspelled": (messages(HI, HELLO, sytem="Be brief."), "the key 'sytem' is unknown. Did you mean 'system'?"),
    # what would be lost in silence
    "tools": (
        messages(HI, HELLO, tools=[CALL]),
        "tools: lmf cannot learn from tool declarations yet; leave the record out",
    ),
    "tools as text": (
        sharegpt(HI, HELLO, tools='[{"name": "add"}]'),
        "tools: lmf cannot learn from tool declarations yet",
    ),
    "tool_calls": (
        messages(HI, {**HELLO, "tool_calls": [CALL]}),
        "messages[1].tool_calls: lmf cannot learn from tool calls yet",
    ),
    "weight": (
        messages(HI, {**HELLO, "weight": 0}),
        "messages[1].weight: lmf cannot learn from weights of messages yet",
    ),
    "reasoning": (
        messages(HI, {**HELLO, "reasoning_content": "Hm."}),
        "messages[1].reasoning_content: lmf cannot learn from reasoning",
    ),
    "images": (alpaca(images=["a.png"]), "images: lmf cannot learn from images yet"),
    "preference pair": (sharegpt(HI, chosen=HELLO, rejected=HELLO), "chosen: lmf cannot learn from preferences yet"),
    "good or bad": (messages(HI, HELLO, label=False), "label: lmf cannot learn from preferences yet"),
}


@pytest.mark.parametrize(("case", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_record_is_refused_with_its_key_and_cause(case: tuple[DataFormat, dict[str, Any]], words: str):
    form, record = case
    assert form.matches(record)
    with pytest.raises(DataError) as caught:
        form.read(record)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_message_stays_one_short_line_whatever_the_record_holds():
    for record in (
        {"messages": [{"role": "x" * 10**6, "content": ""}]},
        {"messages": ["x" * 10**6]},
        {"messages": [{str(n) * 1000: n for n in range(1000)}]},
        {"messages": [{"role": "user", "content": [{"type": "y" * 10**6}]}]},
    ):
        with pytest.raises(DataError) as caught:
            MESSAGES.read(record)
        assert len(str(caught.value)) < 400


def test_plugins_can_check_conversations_by_the_same_rules():
    assert conversation([("q", ASKED), ("a", ANSWERED)]) == (ASKED, ANSWERED)
    with pytest.raises(DataError, match=r"^q2: the role user cannot follow user; assistant comes next\.$"):
        conversation([("q1", ASKED), ("q2", ASKED)])


def test_a_conversation_of_200_000_messages_is_read():
    turns = MESSAGES.read({"messages": [HI, HELLO] * 100_000})
    assert len(turns) == 200_000
