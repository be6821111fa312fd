"""The rules of a conversation, each by one accepted twin and one refused."""

import pytest
from lmf import Conversation, DataError, Message, ToolCall
from lmf.formats.dialogue import Turn, conversation, marked, prompt

SYSTEM, HI, HELLO = Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello!")
ADD, SUB = ToolCall("add", {"a": 1}, "c1"), ToolCall("sub", {}, "c2")
CALLS = Message("assistant", "", calls=(ADD, SUB))
PLAIN_CALL = Message("assistant", "Let me see.", calls=(ToolCall("add", {}),))
FIVE, SIX = Message("tool", "5", call_id="c1"), Message("tool", "6", name="sub")


def turns(*messages: Message) -> list[Turn]:
    return [Turn(f"m{number}", message) for number, message in enumerate(messages)]


KEPT = {
    "user and assistant": (HI, HELLO),
    "several turns": (SYSTEM, HI, HELLO, HI, HELLO),
    "an empty question after a system message": (SYSTEM, Message("user", ""), HELLO),
    "parallel calls": (HI, CALLS, SIX, FIVE, HELLO),
    "fewer results than calls": (HI, CALLS, FIVE, HELLO),
    "results in the order of the calls": (HI, CALLS, Message("tool", "5"), Message("tool", ""), HELLO),
    "a call is the last word": (HI, CALLS),
    "a call answers a result": (HI, PLAIN_CALL, Message("tool", "5"), CALLS, FIVE, HELLO),
    "some replies are context": (HI, Message("assistant", "No.", weight=0), HI, HELLO),
}


@pytest.mark.parametrize("messages", KEPT.values(), ids=KEPT)
def test_a_conversation_that_keeps_the_rules_is_returned_as_it_is(messages):
    assert conversation(turns(*messages)) == Conversation(messages)


RULE = "a user message may be empty only after a system message with text."
BROKEN = {
    "no messages": ((), "the conversation has no messages."),
    "ends with user": ((HI, HELLO, HI), "the conversation ends with a user message; there is no reply to learn."),
    "ends with tool": ((HI, CALLS, FIVE), "the conversation ends with a tool message; there is no reply to learn."),
    "only system": ((SYSTEM,), "the conversation ends with a system message; there is no reply to learn."),
    "assistant first": (
        (HELLO, HI, HELLO),
        "m0: a conversation cannot begin with a message of the role assistant; system or user comes first.",
    ),
    "tool first": (
        (FIVE, HELLO),
        "m0: a conversation cannot begin with a message of the role tool; system or user comes first.",
    ),
    "two users": ((HI, HI, HELLO), "m1: the role user cannot follow user; assistant comes next."),
    "two assistants": ((HI, HELLO, HELLO), "m2: the role assistant cannot follow assistant; user comes next."),
    "two assistants with calls": (
        (HI, CALLS, HELLO),
        "m2: the role assistant cannot follow assistant; tool comes next.",
    ),
    "tool after user": ((HI, FIVE), "m1: the role tool cannot follow user; assistant comes next."),
    "user after tool": ((HI, CALLS, FIVE, HI), "m3: the role user cannot follow tool; assistant or tool comes next."),
    "user after a call": (
        (HI, CALLS, HI, HELLO),
        "m2: the role user cannot follow a call; the tool's result comes next.",
    ),
    "assistant after system": ((SYSTEM, HELLO), "m1: the role assistant cannot follow system; user comes next."),
    "system late": ((HI, SYSTEM, HELLO), "m1: a system message stands only once, and before all others."),
    "system twice": ((SYSTEM, SYSTEM, HI, HELLO), "m1: a system message stands only once, and before all others."),
    "empty reply": ((HI, Message("assistant", " \n")), "m1 is empty; there is no reply to learn."),
    "only thoughts": ((HI, Message("assistant", "", "Hm.")), "m1 is empty; there is no reply to learn."),
    "empty user": ((Message("user", ""), HELLO), f"m0 is empty; {RULE}"),
    "empty user and system": ((Message("system", ""), Message("user", ""), HELLO), f"m1 is empty; {RULE}"),
    "empty later user": ((SYSTEM, HI, HELLO, Message("user", " "), HELLO), f"m3 is empty; {RULE}"),
    "nothing learned": (
        (HI, Message("assistant", "No.", weight=0)),
        "every assistant message has the weight 0; there is no reply to learn.",
    ),
    "result without a call": (
        (HI, HELLO, Message("tool", "5"), HELLO),
        "m2: the result of a tool that was not called; m1 calls none.",
    ),
    "a result too many": ((HI, CALLS, FIVE, SIX, SIX, HELLO), "m4: a result too many; m1 calls 2."),
    "an unknown id": (
        (HI, CALLS, Message("tool", "5", call_id="c3"), HELLO),
        "m2 answers the call 'c3'; the ids of m1 are 'c1', 'c2'.",
    ),
    "an id where calls have none": (
        (HI, PLAIN_CALL, FIVE, HELLO),
        "m2 answers the call 'c1'; the ids of m1 are none.",
    ),
    "an id twice": ((HI, CALLS, FIVE, FIVE, HELLO), "m3 answers the call 'c1' once more; each has one result."),
    "another tool": (
        (HI, CALLS, Message("tool", "5", name="div"), HELLO),
        "m2 is the result of 'div'; m1 calls 'add', 'sub'.",
    ),
    "another tool than the id says": (
        (HI, CALLS, Message("tool", "5", name="sub", call_id="c1"), HELLO),
        "m2 is the result of 'sub'; m1 calls 'add'.",
    ),
}


@pytest.mark.parametrize(("messages", "words"), BROKEN.values(), ids=BROKEN)
def test_a_conversation_that_breaks_a_rule_is_refused_with_the_place(messages, words):
    with pytest.raises(DataError) as caught:
        conversation(turns(*messages))
    assert str(caught.value) == words


def test_results_may_follow_a_call_in_words_of_its_own():
    asked, called, result = turns(HI, Message("assistant", "[add()]"), Message("tool", "5"))
    said = [asked, called._replace(spoken=True), result, Turn("m3", HELLO)]
    assert conversation(said).messages[1:3] == (called.message, result.message)
    assert marked([turn.message for turn in said])[1].spoken


@pytest.mark.parametrize("messages", [(HI,), (SYSTEM, HI, HELLO, HI), (HI, CALLS, FIVE)])
def test_a_prompt_ends_where_a_reply_is_due(messages):
    assert prompt(turns(*messages)) == Conversation(messages)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ((HI, HELLO), "the prompt ends with a message of the role assistant; a user or tool message asks for a reply."),
        ((SYSTEM,), "the prompt ends with a message of the role system; a user or tool message asks for a reply."),
        ((HI, HI), "m1: the role user cannot follow user; assistant comes next."),
    ],
)
def test_a_prompt_that_asks_for_nothing_is_refused(messages, words):
    with pytest.raises(DataError) as caught:
        prompt(turns(*messages))
    assert str(caught.value) == words


def test_the_tools_stay_with_the_conversation():
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert conversation(turns(HI, HELLO), tools).tools == prompt(turns(HI), tools).tools == tuple(tools)
