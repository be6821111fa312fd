"""The formats of conversations, prompts and texts: what their records mean, and what is refused."""

from typing import Any

import pytest
from lmf import Conversation, DataError, Message
from lmf.formats.known import FORMATS

NAMES = {form.name: form for form in FORMATS}
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
SYSTEM, ASKED, ANSWERED = Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello!")
READ = {
    "messages": ("messages", {"messages": [HI, HELLO]}, (ASKED, ANSWERED)),
    "messages with a system key": (
        "messages",
        {"system": "Be brief.", "messages": [HI, HELLO]},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "messages with an empty system key": ("messages", {"system": "", "messages": [HI, HELLO]}, (ASKED, ANSWERED)),
    "messages with a system message": (
        "messages",
        {"messages": [{"role": "system", "content": "Be brief."}, HI, HELLO]},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "messages of a developer": (
        "messages",
        {"messages": [{"role": "developer", "content": "Be brief."}, HI, HELLO]},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "an LMFlow conversation": (
        "messages",
        {"conversation_id": 7, "system": None, "tools": [], "messages": [HI, HELLO, HI, HELLO]},
        (ASKED, ANSWERED, ASKED, ANSWERED),
    ),
    "messages with notes of their own": (
        "messages",
        {"id": "a", "source": "web", "messages": [HI | {"name": "Ann"}, HELLO | {"tool_calls": None, "weight": 1}]},
        (ASKED, ANSWERED),
    ),
    "content in parts": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                HELLO,
            ]
        },
        (ASKED, ANSWERED),
    ),
    "an empty user message after a system message": (
        "messages",
        {"system": "Be brief.", "messages": [{"role": "user", "content": ""}, HELLO]},
        (SYSTEM, Message("user", ""), ANSWERED),
    ),
    "alpaca": ("alpaca", {"instruction": "Hi", "output": "Hello!"}, (ASKED, ANSWERED)),
    "alpaca with an empty input": ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello!"}, (ASKED, ANSWERED)),
    "alpaca with input null": ("alpaca", {"instruction": "Hi", "input": None, "output": "Hello!"}, (ASKED, ANSWERED)),
    "alpaca with an empty instruction": (
        "alpaca",
        {"instruction": "", "input": "Hi", "output": "Hello!"},
        (ASKED, ANSWERED),
    ),
    "alpaca with an input": (
        "alpaca",
        {"instruction": "Add.", "input": "2 and 3", "output": "Hello!"},
        (Message("user", "Add.\n2 and 3"), ANSWERED),
    ),
    "alpaca with system and history": (
        "alpaca",
        {"instruction": "b?", "output": "B", "system": "Be brief.", "history": [["Hi", "Hello!"]]},
        (SYSTEM, ASKED, ANSWERED, Message("user", "b?"), Message("assistant", "B")),
    ),
    "alpaca without history": ("alpaca", {"instruction": "Hi", "output": "Hello!", "history": None}, (ASKED, ANSWERED)),
    "sharegpt": (
        "sharegpt",
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
        },
        (SYSTEM, ASKED, ANSWERED),
    ),
    "sharegpt with a system turn": (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, HELLO]},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "Qwen's conversations": (
        "sharegpt",
        {"id": "q0", "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello!"}]},
        (ASKED, ANSWERED),
    ),
    "conversations with roles": ("sharegpt", {"tools": "[]", "conversations": [HI, HELLO]}, (ASKED, ANSWERED)),
    **{
        f"sharegpt from {name}": (
            "sharegpt",
            {"conversations": [{"from": "user", "value": "Hi"}, {"from": name, "value": "Hello!"}]},
            (ASKED, ANSWERED),
        )
        for name in ("chatgpt", "bing", "bard")
    },
    "text2text": ("text2text", {"input": "Hi", "output": "Hello!"}, (ASKED, ANSWERED)),
    "text2text with a system key": (
        "text2text",
        {"system": "Be brief.", "input": "Hi", "output": "Hello!"},
        (SYSTEM, ASKED, ANSWERED),
    ),
    "completion": ("completion", {"prompt": "Hi", "completion": "Hello!"}, (ASKED, ANSWERED)),
    "completion of messages": (
        "completion",
        {"prompt": [HI, HELLO, HI], "completion": [HELLO]},
        (ASKED, Message("assistant", "Hello!", weight=0), ASKED, ANSWERED),
    ),
    "completion that trains its prompt": (
        "completion",
        {"prompt": [HI, HELLO | {"train": True}, HI], "completion": [HELLO]},
        (ASKED, ANSWERED, ASKED, ANSWERED),
    ),
    "completion of several turns": (
        "completion",
        {"system": "Be brief.", "prompt": "Hi", "completion": [HELLO, HI, HELLO]},
        (SYSTEM, ASKED, ANSWERED, ASKED, ANSWERED),
    ),
    "prompt": ("prompt", {"prompt": "Hi"}, (ASKED,)),
    "prompt of messages": (
        "prompt",
        {"system": "Be brief.", "prompt": [HI, HELLO, HI]},
        (SYSTEM, ASKED, ANSWERED, ASKED),
    ),
    "prompt of parts": ("prompt", {"prompt": [{"type": "text", "text": "Hi"}]}, (ASKED,)),
}


@pytest.mark.parametrize(("name", "record", "expected"), READ.values(), ids=READ)
def test_a_record_is_read_as_it_is_meant(name: str, record: dict[str, Any], expected: tuple[Message, ...]):
    assert NAMES[name].matches(record)
    assert NAMES[name].read(record) == Conversation(expected)


def test_a_text_is_read_as_it_stands():
    assert NAMES["text"].read({"text": " One\r\n\u2028two ", "label": True}) == " One\r\n\u2028two "


def messages(*items: Any, **keys: Any) -> tuple[str, dict[str, Any]]:
    return "messages", {"messages": list(items), **keys}


def content(value: Any) -> tuple[str, dict[str, Any]]:
    return messages(HI, {"role": "assistant", "content": value})


def alpaca(**keys: Any) -> tuple[str, dict[str, Any]]:
    return "alpaca", {"instruction": "Hi", "output": "Hello!", **keys}


def text2text(**keys: Any) -> tuple[str, dict[str, Any]]:
    return "text2text", {"input": "Hi", "output": "Hello!", **keys}


def sharegpt(*items: Any, **keys: Any) -> tuple[str, dict[str, Any]]:
    return "sharegpt", {"conversations": list(items), **keys}


RULE = "a user message may be empty only after a system message with text."
ROLES = "roles are system, user, assistant, tool, developer, function, function_call, observation."
TASK = "records with these keys hold no"
REFUSED = {
    # what a message holds
    "content null": (content(None), "messages[1].content is null; it must be a text."),
    "content number": (content(3), "messages[1].content is the number 3; it must be a text."),
    "content true": (content(True), "messages[1].content is true; it must be a text."),
    "content object": (content({"text": "x"}), "messages[1].content is an object; it must be a text."),
    "content list": (content(["x"]), "messages[1].content is a list; it must be a text."),
    "content empty list": (content([]), "messages[1].content is a list; it must be a text."),
    "image part": (
        content([{"type": "image_url"}]),
        "messages[1].content[0] is a part of the type 'image_url'; lmf takes text only.",
    ),
    "part without text": (content([{"type": "text"}]), "messages[1].content[0].text is null; it must be a text."),
    "no content": (
        messages(HI, {"role": "assistant", "contnet": ""}),
        "messages[1].contnet is an unknown key. Did you mean 'content'?",
    ),
    "only a role": (messages(HI, {"role": "assistant"}), "messages[1] has no key 'content'; its keys are ['role']."),
    "no role": (messages({"content": "Hi"}, HELLO), "messages[0] has no key 'role'; its keys are ['content']."),
    "message is a text": (
        messages("Hi", HELLO),
        "messages[0] is the text 'Hi'; it must be an object with 'role' and 'content'.",
    ),
    "messages is an object": (("messages", {"messages": HI}), "messages is an object; it must be a list."),
    "messages is null": (("messages", {"messages": None}), "messages is null; it must be a list."),
    "system is a list": (messages(HI, HELLO, system=["Be brief."]), "system is a list; it must be a text."),
    # roles
    "role misspelled": (
        messages({"role": "usr", "content": "Hi"}, HELLO),
        f"messages[0].role is the text 'usr'; {ROLES} Did you mean 'user'?",
    ),
    "role null": (messages({"role": None, "content": "Hi"}, HELLO), f"messages[0].role is null; {ROLES}"),
    "role list": (messages({"role": ["user"], "content": "Hi"}, HELLO), f"messages[0].role is a list; {ROLES}"),
    "from misspelled": (
        sharegpt({"from": "humn", "value": "Hi"}),
        "conversations[0].from is the text 'humn'; roles are human, gpt, chatgpt, bing, bard,"
        f" {ROLES.removeprefix('roles are ')} Did you mean 'human'?",
    ),
    "no value": (
        sharegpt({"from": "human", "text": "Hi"}),
        "conversations[0] has no key 'value'; its keys are ['from', 'text'].",
    ),
    "no from": (sharegpt({"value": "Hi"}), "conversations[0] has no key 'from'; its keys are ['value']."),
    # rules
    "no messages": (messages(), "the conversation has no messages."),
    "two users": (messages(HI, HI, HELLO), "messages[1]: the role user cannot follow user; assistant comes next."),
    "system twice": (
        messages({"role": "system", "content": "x"}, HI, HELLO, system="x"),
        "messages[0]: a system message stands only once, and before all others.",
    ),
    "empty text": (("text", {"text": " \n"}), "text is empty; there is nothing to learn."),
    "text null": (("text", {"text": None}), "text is null; it must be a text."),
    "text with images": (
        ("text", {"text": "x", "images": ["a.png"]}),
        "images: lmf takes text only; leave the record out.",
    ),
    "empty input": (text2text(input=""), f"input is empty; {RULE}"),
    "empty output": (text2text(output=""), "output is empty; there is no reply to learn."),
    # alpaca
    "alpaca output null": (alpaca(output=None), "output is null; it must be a text."),
    "alpaca output empty": (alpaca(output=""), "output is empty; there is no reply to learn."),
    "alpaca instruction null": (alpaca(instruction=None, input="x"), "instruction is null; it must be a text."),
    "alpaca nothing asked": (alpaca(instruction="", input=""), f"instruction is empty; {RULE}"),
    "alpaca input number": (alpaca(input=0), "input is the number 0; it must be a text."),
    "alpaca history text": (alpaca(history="x"), "history is the text 'x'; it must be a list."),
    "alpaca history of three": (
        alpaca(history=[["a", "b", "c"]]),
        "history[0] is a list; it must be a list of two texts, [user, assistant].",
    ),
    "alpaca history null": (alpaca(history=[["a", None]]), "history[0][1] is null; it must be a text."),
    "alpaca history empty reply": (
        alpaca(history=[["a", "b"], ["a", ""]]),
        "history[1][1] is empty; there is no reply to learn.",
    ),
    # completion and prompt
    "completion null": (
        ("completion", {"prompt": "Hi", "completion": None}),
        "completion is null; it must be a text.",
    ),
    "completion of nothing": (
        ("completion", {"prompt": "Hi", "completion": []}),
        "the conversation ends with a user message; there is no reply to learn.",
    ),
    "prompt number": (("prompt", {"prompt": 5}), "prompt is the number 5; it must be a text."),
    "prompt with a reply": (
        ("prompt", {"prompt": [HI, HELLO]}),
        "the prompt ends with a message of the role assistant; a user or tool message asks for a reply.",
    ),
    # keys that are nearly known
    "alpaca misspelled": (alpaca(Input="2 and 3"), "Input is an unknown key. Did you mean 'input'?"),
    "system misspelled": (messages(HI, HELLO, sytem="x"), "sytem is an unknown key. Did you mean 'system'?"),
    "a key of a message misspelled": (
        messages(HI, HELLO | {"tool_call": []}),
        "messages[1].tool_call is an unknown key. Did you mean 'tool_calls'?",
    ),
    # what would be lost in silence
    "tools": (alpaca(tools=[{"name": "add"}]), f"tools: {TASK} tool declarations; write them as messages."),
    "history": (text2text(history=[["a", "b"]]), f"history: {TASK} earlier turns; write them as messages."),
    "reasoning": (
        alpaca(reasoning="Hm."),
        f"reasoning: {TASK} reasoning apart from the reply; write them as messages.",
    ),
    "images": (alpaca(images=["a.png"]), "images: lmf takes text only; leave the record out."),
    "an image": (sharegpt(HI, HELLO, image="a.png"), "image: lmf takes text only; leave the record out."),
    "images of a message": (
        messages(HI | {"images": ["a.png"]}, HELLO),
        "messages[0].images: lmf takes text only; leave the record out.",
    ),
    "half a preference": (messages(HI, HELLO, chosen="x"), "chosen: a preference needs both, chosen and rejected."),
    "a weight": (alpaca(weight=0.5), "weight: only assistant messages have a weight; write it there."),
    "judged in words": (messages(HI, HELLO, label="true"), "label is the text 'true'; it must be true or false."),
    "tools of a message": (
        sharegpt({"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!", "tools": '[{"name": "add"}]'}),
        "conversations[1].tools: a message has none; write it in the record, beside the messages.",
    ),
    "system of a message": (
        messages(HI | {"system": "Be brief."}, HELLO),
        "messages[0].system: a message has none; write it in the record, beside the messages.",
    ),
    **{
        f"prompt with {key}": (
            ("prompt", {"prompt": "Hi", key: "Hello!"}),
            f"{key}: a prompt has no reply; --columns prompt=prompt,completion={key} to learn it, "
            "--columns prompt=prompt to leave it out.",
        )
        for key in ("response", "output", "answer")
    },
    "judged": (text2text(label=False), "label: records with these keys are not judged; write them as messages."),
}


@pytest.mark.parametrize(("case", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_record_is_refused_with_its_key_and_cause(case: tuple[str, dict[str, Any]], words: str):
    name, record = case
    assert NAMES[name].matches(record)
    with pytest.raises(DataError) as caught:
        NAMES[name].read(record)
    assert str(caught.value) == words


def test_a_prompt_may_have_the_column_of_a_reply_that_is_empty():
    for key in ("response", "output", "answer"):
        assert NAMES["prompt"].read({"prompt": "Hi", key: ""}) == Conversation((ASKED,))


EMPTY = {
    "images": [],
    "tools": "[]",
    "history": [],
    "chosen": None,
    "kto_tag": None,
    "label": "greeting",
    "videos": "",
    "weight": 1,
}


@pytest.mark.parametrize("key", EMPTY)
def test_a_key_that_says_nothing_does_no_harm(key: str):
    assert NAMES["text2text"].read({"input": "Hi", "output": "Hello!", key: EMPTY[key]}) == Conversation(
        (ASKED, ANSWERED)
    )


def test_a_message_stays_one_short_line_whatever_the_record_holds():
    long = "x" * 10**6
    call = {"id": long, "name": long, "arguments": {}}
    for record in (
        {"messages": [{"role": long, "content": ""}]},
        {"messages": [long]},
        {"messages": [{str(n) * 1000: n for n in range(1000)}]},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"messages": [HI, HELLO | {"tool_calls": [call, call]}]},
        {"messages": [HI, HELLO | {"tool_calls": [call]}, {"role": "tool", "content": "", "tool_call_id": long + "y"}]},
        {"messages": [HI, HELLO | {"tool_calls": [call]}, {"role": "tool", "content": "", "name": long + "y"}]},
        {"messages": [HI, HELLO | {"tool_calls": f"[{long}]"}]},
    ):
        with pytest.raises(DataError) as caught:
            NAMES["messages"].read(record)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)


def test_a_conversation_of_200_000_messages_is_read():
    read = NAMES["messages"].read({"messages": [HI, HELLO] * 100_000})
    assert isinstance(read, Conversation)
    assert len(read.messages) == 200_000
