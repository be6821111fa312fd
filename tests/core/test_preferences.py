"""Records that judge replies: which of two is better, whether one is good, how several rank."""

from typing import Any

import pytest
from lmf import Conversation, DataError, Message, Preference, Ranking, ToolCall, Unpaired
from lmf.formats.known import FORMATS

NAMES = {form.name: form for form in FORMATS}
SYSTEM, HI = Message("system", "Be brief."), Message("user", "Hi")
HELLO, WHAT = Message("assistant", "Hello!"), Message("assistant", "What?")
SAY = {"role": "user", "content": "Hi"}
GOOD, BAD = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "What?"}
RULE = {"role": "system", "content": "Be brief."}
ADD = {"type": "function", "function": {"name": "add"}}
PAIR = Preference(Conversation((HI,)), (HELLO,), (WHAT,))
TOLD = Preference(Conversation((SYSTEM, HI)), (HELLO,), (WHAT,))


def better(by: float) -> Preference:
    return Preference(PAIR.prompt, PAIR.chosen, PAIR.rejected, by)


READ = {
    "texts": ("preference", {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, PAIR),
    "LMFlow's paired_text_to_text": (
        "preference",
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 2},
        better(2.0),
    ),
    "a prompt of messages": ("preference", {"prompt": [RULE, SAY], "chosen": [GOOD], "rejected": [BAD]}, TOLD),
    "a system key": (
        "preference",
        {"system": "Be brief.", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        TOLD,
    ),
    "single messages": ("preference", {"prompt": "Hi", "chosen": GOOD, "rejected": BAD}, PAIR),
    "a common beginning": ("preference", {"chosen": [RULE, SAY, GOOD], "rejected": [RULE, SAY, BAD]}, TOLD),
    "a common beginning and a system key": (
        "preference",
        {"system": "Be brief.", "chosen": [SAY, GOOD], "rejected": [SAY, BAD]},
        TOLD,
    ),
    "a common beginning that the prompt repeats": (
        "preference",
        {"prompt": "Hi ", "chosen": [RULE, SAY, GOOD], "rejected": [RULE, SAY, BAD]},
        TOLD,
    ),
    "a common beginning that the prompt repeats in messages": (
        "preference",
        {"prompt": [SAY], "chosen": [RULE, SAY, GOOD], "rejected": [RULE, SAY, BAD]},
        TOLD,
    ),
    "a common beginning of several turns": (
        "preference",
        {"chosen": [SAY, BAD, SAY, GOOD], "rejected": [SAY, BAD, SAY, BAD]},
        Preference(Conversation((HI, WHAT, HI)), (HELLO,), (WHAT,)),
    ),
    "replies that go on alike": (
        "preference",
        {"chosen": [SAY, GOOD, SAY, GOOD], "rejected": [SAY, BAD, SAY, GOOD]},
        Preference(Conversation((HI,)), (HELLO, HI, HELLO), (WHAT, HI, HELLO)),
    ),
    "a user who goes on differently": (
        "preference",
        {"chosen": [SAY, GOOD, SAY, GOOD], "rejected": [SAY, GOOD, {"role": "user", "content": "Ha"}, GOOD]},
        Preference(Conversation((HI,)), (HELLO, HI, HELLO), (HELLO, Message("user", "Ha"), HELLO)),
    ),
    "a reply that ends sooner": (
        "preference",
        {"chosen": [SAY, GOOD], "rejected": [SAY, GOOD, SAY, BAD]},
        Preference(Conversation((HI,)), (HELLO,), (HELLO, HI, WHAT)),
    ),
    "LMFlow's paired_conversation": (
        "preference",
        {
            "chosen": {"conversation_id": 1, "system": "Be brief.", "tools": [], "messages": [SAY, GOOD]},
            "rejected": {"conversation_id": 2, "system": "Be brief.", "tools": [], "messages": [SAY, BAD]},
        },
        TOLD,
    ),
    "LMFlow's paired_conversation with tools": (
        "preference",
        {"chosen": {"tools": [ADD], "messages": [SAY, GOOD]}, "rejected": {"tools": [ADD], "messages": [SAY, BAD]}},
        Preference(Conversation((HI,), (ADD,)), (HELLO,), (WHAT,)),
    ),
    "messages": ("messages-preference", {"messages": [RULE, SAY], "chosen": GOOD, "rejected": BAD}, TOLD),
    "messages and texts": ("messages-preference", {"messages": [SAY], "chosen": "Hello!", "rejected": [BAD]}, PAIR),
    "sharegpt": (
        "sharegpt-preference",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
            "tools": '[{"name": "add"}]',
        },
        Preference(Conversation((HI,), (ADD,)), (HELLO,), (Message("assistant", "", calls=(ToolCall("add", {}),)),)),
    ),
    "alpaca": (
        "alpaca-preference",
        {
            "instruction": "Hi",
            "input": "you",
            "chosen": "Hello!",
            "rejected": "What?",
            "history": [["Hi", "Hello!"]],
            "system": "Be brief.",
        },
        Preference(Conversation((SYSTEM, HI, HELLO, Message("user", "Hi\nyou"))), (HELLO,), (WHAT,)),
    ),
    "LLM-Genie's": ("alpaca-pair", {"instruction": "Hi", "input": "", "output": ["Hello!", "What?"]}, PAIR),
    "j and k": ("response-pair", {"question": "Hi", "response_j": "Hello!", "response_k": "What?"}, PAIR),
    "transcripts": (
        "transcript-preference",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman:  two\nlines \n\nAssistant: Hello!",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman:  two\nlines \n\nAssistant: What?",
        },
        Preference(Conversation((HI, HELLO, Message("user", " two\nlines "))), (HELLO,), (WHAT,)),
    ),
    "a transcript and two replies": (
        "preference",
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": " What?", "margin": 1.5},
        better(1.5),
    ),
    "a transcript of several turns": (
        "preference",
        {
            "prompt": "Human: Hi\n\nAssistant: Hello!\n\nHuman: Hi\n\nAssistant: ",
            "chosen": "Hello!",
            "rejected": "What?",
        },
        Preference(Conversation((HI, HELLO, HI)), (HELLO,), (WHAT,)),
    ),
    "a prompt that only speaks of a transcript": (
        "preference",
        {"prompt": "What is 'Human: Hi\n\nAssistant:'?", "chosen": "Hello!", "rejected": "What?"},
        Preference(Conversation((Message("user", "What is 'Human: Hi\n\nAssistant:'?"),)), (HELLO,), (WHAT,)),
    ),
    **{
        f"scores {better_key}": (
            "preference",
            {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", better_key: 8.5, worse_key: 7},
            better(1.5),
        )
        for better_key, worse_key in (
            ("score_chosen", "score_rejected"),
            ("chosen_score", "rejected_score"),
            ("chosen_rating", "rejected_rating"),
            ("chosen-rating", "rejected-rating"),
        )
    },
    "no scores": (
        "preference",
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "score_chosen": None, "margin": None},
        PAIR,
    ),
    # one reply that is good or bad
    "good": (
        "unpaired",
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        Unpaired(Conversation((HI, HELLO)), True),
    ),
    "bad, of messages": (
        "unpaired",
        {"prompt": [SAY], "completion": [BAD], "label": False},
        Unpaired(Conversation((HI, WHAT)), False),
    ),
    "messages and a label": (
        "messages-unpaired",
        {"messages": [SAY, BAD], "label": False},
        Unpaired(Conversation((HI, WHAT)), False),
    ),
    "messages and a tag": (
        "messages-unpaired",
        {"messages": [SAY, GOOD], "kto_tag": True, "label": "greeting"},
        Unpaired(Conversation((HI, HELLO)), True),
    ),
    "sharegpt and a tag": (
        "sharegpt-unpaired",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "kto_tag": True},
        Unpaired(Conversation((HI, HELLO)), True),
    ),
    "alpaca and a tag": (
        "alpaca-unpaired",
        {"instruction": "Hi", "output": "What?", "kto_tag": False},
        Unpaired(Conversation((HI, WHAT)), False),
    ),
    # several replies
    "text_to_textlist": ("ranking", {"input": "Hi", "output": ["a", "b"]}, Ranking(Conversation((HI,)), ("a", "b"))),
    "text_to_scored_textlist": (
        "ranking",
        {"input": "Hi", "output": [{"score": -1, "text": "a"}, {"score": 0.5, "text": "b"}]},
        Ranking(Conversation((HI,)), ("a", "b"), (-1.0, 0.5)),
    ),
}


@pytest.mark.parametrize(("name", "record", "expected"), READ.values(), ids=READ)
def test_a_record_is_read_as_it_is_meant(name: str, record: dict[str, Any], expected: Any):
    assert NAMES[name].matches(record)
    assert NAMES[name].read(record) == expected


def test_the_keys_of_preferences_fit_no_conversation():
    for name, record, _ in READ.values():
        fitting = [form.name for form in FORMATS if form.data == "conversation" and form.matches(record)]
        assert not fitting, (name, record)


def pair(**keys: Any) -> tuple[str, dict[str, Any]]:
    return "preference", {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", **keys}


def both(chosen: list[Any], rejected: list[Any], **keys: Any) -> tuple[str, dict[str, Any]]:
    return "preference", {"chosen": chosen, "rejected": rejected, **keys}


def spoken(chosen: str, rejected: str) -> tuple[str, dict[str, Any]]:
    return "transcript-preference", {"chosen": chosen, "rejected": rejected}


NO_PROMPT = "chosen and rejected do not begin with the same messages; there is no prompt to reply to."
SAME = "chosen and rejected are the same; there is nothing to prefer."
REFUSED = {
    "the same texts": (pair(rejected="Hello!"), SAME),
    "the same conversations": (both([SAY, GOOD], [SAY, GOOD]), SAME),
    "an empty reply": (pair(rejected=""), "rejected is empty; there is no reply to learn."),
    "a number": (pair(chosen=5), "chosen is the number 5; it must be a text."),
    "an empty prompt": (
        pair(prompt=""),
        "prompt is empty; a user message may be empty only after a system message with text.",
    ),
    "a prompt with a reply": (
        pair(prompt=[SAY, GOOD]),
        "the prompt ends with a message of the role assistant; a user or tool message asks for a reply.",
    ),
    "replies without a prompt": (both([GOOD], [BAD]), "chosen begins with a reply, and no key prompt says to what."),
    "another beginning": (both([SAY, GOOD], [{"role": "user", "content": "Ha"}, BAD]), NO_PROMPT),
    "a reply and a conversation": (both([SAY, GOOD], [BAD], prompt="Hi"), NO_PROMPT),
    "another prompt": (
        both([SAY, GOOD], [SAY, BAD], prompt="Ha"),
        "prompt is not what chosen and rejected begin with.",
    ),
    "other messages": (
        pair(messages=[SAY]),
        "messages differs from chosen; keep one of messages and prompt.",
    ),
    "a user at the end": (
        both([SAY, GOOD, SAY], [SAY, BAD]),
        "chosen[2] has the role user; the assistant ends a reply.",
    ),
    "a reply that is no reply": (
        ("messages-preference", {"messages": [SAY], "chosen": GOOD, "rejected": SAY}),
        "rejected has the role user; the assistant ends a reply.",
    ),
    "other tools": (
        ("preference", {"chosen": {"tools": [ADD], "messages": [SAY, GOOD]}, "rejected": {"messages": [SAY, BAD]}}),
        "chosen.tools and rejected.tools differ; both replies have the same tools.",
    ),
    "a bad message of LMFlow": (
        ("preference", {"chosen": {"messages": [SAY, {"role": "x"}]}, "rejected": {"messages": [SAY, BAD]}}),
        "chosen.messages[1].role is the text 'x'; roles are system, user, assistant, tool, developer, function,"
        " function_call, observation.",
    ),
    "a bad system message of LMFlow": (
        ("preference", {"chosen": {"system": 1, "messages": [SAY]}, "rejected": {"messages": [SAY, BAD]}}),
        "chosen.system is the number 1; it must be a text.",
    ),
    "a negative margin": (pair(margin=-1), "margin is the number -1; it must be at least 0."),
    "a margin as text": (pair(margin="1"), "margin is the text '1'; it must be a number."),
    "scores that contradict": (
        pair(score_chosen=1, score_rejected=2),
        "score_chosen is less than score_rejected; the chosen reply is the better one.",
    ),
    "images": (pair(images=["a.png"]), "images: lmf takes text only; leave the record out."),
    "three outputs": (
        ("alpaca-pair", {"instruction": "Hi", "output": ["a", "b", "c"]}),
        "output is a list of 3; it must hold two replies, the better one first.",
    ),
    "an output null": (
        ("alpaca-pair", {"instruction": "Hi", "output": ["a", None]}),
        "output[1] is null; it must be a text.",
    ),
    "two users in a transcript": (
        spoken("\n\nHuman: Hi\n\nHuman: Hi\n\nAssistant: a", "\n\nHuman: Hi\n\nAssistant: b"),
        NO_PROMPT,
    ),
    "an empty turn in a transcript": (
        spoken("\n\nHuman: Hi\n\nAssistant: a", "\n\nHuman: Hi\n\nAssistant:"),
        "rejected, turn 2 is empty; there is no reply to learn.",
    ),
    "a system message beside transcripts": (
        (
            "transcript-preference",
            {"system": "x", "chosen": "Human: Hi\n\nAssistant: a", "rejected": "Human: Hi\n\nAssistant: b"},
        ),
        "system: records with these keys hold no system message; write them as messages.",
    ),
    "no transcript": (
        spoken("\n\nHuman: Hi\n\nAssistant: a", "b"),
        "rejected does not begin with 'Human: '; each turn stands after a blank line and that name.",
    ),
    "a tag in words": (
        ("messages-unpaired", {"messages": [SAY, GOOD], "kto_tag": "good"}),
        "kto_tag is the text 'good'; it must be true or false.",
    ),
    "a label and a tag": (
        ("messages-unpaired", {"messages": [SAY, GOOD], "kto_tag": True, "label": False}),
        "label is false and kto_tag is true; keep one of them.",
    ),
    "one reply to rank": (
        ("ranking", {"input": "Hi", "output": ["a"]}),
        "output is a list of 1; there is nothing to rank below two replies.",
    ),
    "an empty reply to rank": (
        ("ranking", {"input": "Hi", "output": ["a", " "]}),
        "output[1] is empty; there is no reply to learn.",
    ),
    "one reply without a score": (
        ("ranking", {"input": "Hi", "output": [{"score": 1, "text": "a"}, "b"]}),
        "output[1] is the text 'b'; it must be an object with 'score' and 'text', like the others.",
    ),
    "no score": (
        ("ranking", {"input": "Hi", "output": [{"text": "a"}, {"text": "b"}]}),
        "output[0] has no key 'score'; its keys are ['text'].",
    ),
    "a score in words": (
        ("ranking", {"input": "Hi", "output": [{"score": "1", "text": "a"}, {"score": 0, "text": "b"}]}),
        "output[0].score is the text '1'; it must be a number.",
    ),
}


@pytest.mark.parametrize(("case", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_record_is_refused_with_its_key_and_cause(case: tuple[str, dict[str, Any]], words: str):
    name, record = case
    assert NAMES[name].matches(record)
    with pytest.raises(DataError) as caught:
        NAMES[name].read(record)
    assert str(caught.value) == words


def test_texts_without_a_prompt_that_are_no_transcripts_fit_no_format():
    record = {"question": "Hi", "chosen": "Hello!", "rejected": "What?"}
    assert not [form.name for form in FORMATS if form.matches(record)]
