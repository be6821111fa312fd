"""What holds for every format: its example, what it writes, and that no two fit one record."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lmf import Conversation, DataError, DataFormat, Message, Preference, Ranking, ToolCall, Unpaired
from lmf.data.jsonfile import read_json
from lmf.formats.known import FORMATS, exact

NAMES = {form.name: form for form in FORMATS}
KINDS = ("conversation", "prompt", "text", "preference", "unpaired", "ranking")
CLASSES = dict(zip(KINDS, (Conversation, Conversation, str, Preference, Unpaired, Ranking), strict=True))


def matching(record: dict[str, Any], kind: str) -> list[str]:
    return [form.name for form in FORMATS if form.data == kind and form.matches(record)]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_example_of_a_format_matches_it_alone_and_can_be_read(form: DataFormat):
    example = json.loads(form.example)
    assert [each.name for each in FORMATS if each.matches(example)] == [form.name]
    assert isinstance(form.read(example), CLASSES[form.data])


# Records of public data sets: for each kind, the one format that reads it

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
WORSE = [TALK[0], {"role": "assistant", "content": "What?"}]
RECORDS = {
    "tatsu-lab/alpaca": (
        {"instruction": "Hi", "input": "", "output": "Hello!", "text": "Below is ..."},
        {"conversation": "alpaca", "text": "text"},
    ),
    "ultrachat_200k": (
        {"prompt": "Hi", "prompt_id": "1", "messages": TALK},
        {"conversation": "messages", "prompt": "prompt"},
    ),
    "ultrafeedback_binarized": (
        {"prompt": "Hi", "chosen": TALK, "rejected": WORSE, "messages": TALK, "score_chosen": 8.5, "score_rejected": 7},
        {"preference": "preference"},
    ),
    "dpo-mix-7k": (
        {"dataset": "x", "chosen": TALK, "rejected": WORSE, "chosen_rating": 5, "rejected_rating": 4},
        {"preference": "preference"},
    ),
    "hh-rlhf": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
        {"preference": "transcript-preference"},
    ),
    "stack-exchange-paired": (
        {"qid": 1, "question": "Hi", "response_j": "Hello!", "response_k": "What?"},
        {"preference": "response-pair"},
    ),
    "comparison_gpt4": (
        {"instruction": "Hi", "input": "", "output": ["Hello!", "What?"]},
        {"preference": "alpaca-pair"},
    ),
    "kto-mix-14k": ({"prompt": TALK[:1], "completion": TALK[1:], "label": True}, {"unpaired": "unpaired"}),
    "SlimOrca": (
        {
            "conversations": [
                {"from": "human", "value": "Hi", "weight": 0},
                {"from": "gpt", "value": "Hello!", "weight": 1},
            ]
        },
        {"conversation": "sharegpt"},
    ),
    "LMFlow paired_conversation": (
        {"chosen": {"messages": TALK}, "rejected": {"messages": WORSE}},
        {"preference": "preference"},
    ),
    "columns that are empty here": (
        {"messages": TALK, "chosen": None, "rejected": None, "kto_tag": None, "label": "greeting"},
        {"conversation": "messages"},
    ),
}


@pytest.mark.parametrize(("record", "expected"), RECORDS.values(), ids=RECORDS)
def test_exactly_one_format_of_a_kind_reads_a_record(record, expected):
    found = {kind: matching(record, kind) for kind in KINDS}
    assert {kind: names for kind, names in found.items() if names} == {kind: [name] for kind, name in expected.items()}
    for name in expected.values():
        NAMES[name].read(record)


# Writing


class Chance:
    """Random contents of every kind, from plain to strange."""

    words = ("", " ", "Hi", "two\nlines", "\n\nHuman: me", "\n\nAssistant: ", "{", '[{"name": 1}]', "[]", "é\u2028🙂")

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._plain = self._often(0.5)

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def text(self) -> str:
        return "".join(self._random.choices(self.words, k=self._random.randint(0, 2))) + "x"

    def value(self, depth: int = 2) -> Any:
        leaves = [None, True, 0, -3, 2.5, "ü", "{}"]
        if not depth or self._often(0.6):
            return self._random.choice(leaves)
        inner = [self.value(depth - 1) for _ in range(self._random.randint(0, 2))]
        return inner if self._often(0.5) else {f"k{number}": item for number, item in enumerate(inner)}

    def call(self, identity: str) -> ToolCall:
        arguments = {f"a{number}": self.value() for number in range(self._random.randint(0, 2))}
        return ToolCall(self._random.choice(("add", "sub")), arguments, identity)

    def reply(self) -> Message:
        if self._plain:
            return Message("assistant", self.text())
        weight = self._random.choice((1.0, 1.0, 0.5, 2.0, 0.0))
        calls = tuple(self.call(f"c{n}" if self._often(0.5) else "") for n in range(self._random.choice((0, 0, 1, 2))))
        reasoning = self.text() if self._often(0.3) else ""
        return Message("assistant", "" if calls and self._often(0.7) else self.text(), reasoning, calls, weight=weight)

    def results(self, reply: Message) -> list[Message]:
        calls = list(reply.calls)[: self._random.randint(1, 2)]
        return [
            Message("tool", self.text(), name=call.name if self._often(0.5) else "", call_id=call.id) for call in calls
        ]

    def until_user(self) -> list[Message]:
        """A conversation that ends with the user."""
        said = [Message("system", self.text())] if self._often(0.4) else []
        for _ in range(self._random.choice((0, 0, 1, 2))):
            said += [Message("user", self.text()), *self.answer()]
        empty = len(said) == 1 and self._often(0.2)  # the system message asks alone
        return [*said, Message("user", "" if empty else self.text())]

    def answer(self) -> list[Message]:
        """Replies up to one without calls; now and then one calls in words of its own."""
        if not self._plain and self._often(0.15):
            return [Message("assistant", "[add()]"), Message("tool", "5"), Message("assistant", self.text())]
        reply = self.reply()
        return [reply, *self.results(reply), *self.answer()] if reply.calls else [reply]

    def tools(self) -> tuple[dict[str, Any], ...]:
        if self._plain or self._often(0.5):
            return ()
        return ({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},)

    def content(self, kind: str) -> Any:
        asked, tools = self.until_user(), self.tools()
        prompt = Conversation(tuple(asked), tools)
        replies = self.answer() if self._often(0.3) else [self.reply()]
        whole = Conversation((*asked, *replies), tools)
        if kind == "text":
            return self.text()
        if kind == "preference":
            other = self.answer() if self._often(0.3) else [self.reply()]
            margin = self._random.choice((None, None, 0.0, 1.5))
            return Preference(prompt, tuple(replies), tuple(other), margin)
        if kind == "ranking":
            count = self._random.randint(2, 3)
            scores = tuple(self._random.choice((0.0, -1.5, 3.0)) for _ in range(count)) if self._often(0.5) else ()
            return Ranking(prompt, tuple(self.text() for _ in range(count)), scores)
        return {"conversation": whole, "prompt": prompt, "unpaired": Unpaired(whole, self._often(0.5))}[kind]


def test_what_a_format_writes_it_reads_back_the_same_and_no_other_of_its_kind_matches():
    outcomes = Counter()
    for seed in range(500):
        content = {kind: Chance(seed).content(kind) for kind in KINDS}
        for form in FORMATS:
            assert form.write
            try:
                record = form.write(content[form.data])
            except DataError as error:
                assert str(error).startswith(f"the format {form.name} cannot express this {form.data}: ")
                outcomes[form.name, "refused"] += 1
                continue
            outcomes[form.name, "written"] += 1
            record = json.loads(json.dumps(record))
            assert form.read(record) == content[form.data]
            assert matching(record, form.data) == [form.name]
    for form in FORMATS:
        assert outcomes[form.name, "written"] > 40, outcomes


@pytest.mark.parametrize("name", ["messages", "preference", "messages-unpaired", "prompt", "completion"])
def test_messages_can_express_whatever_keeps_the_rules(name):
    """What they refuse is nothing that could have been read, in whatever format."""
    write = NAMES[name].write
    assert write
    for seed in range(300):
        try:
            write(Chance(seed).content(NAMES[name].data))
        except DataError as error:
            assert str(error).endswith(("there is no reply to learn.", "there is nothing to prefer.")), error


STRANGE = (
    None,
    True,
    0,
    -1.5,
    "",
    "Hi",
    "{",
    "[]",
    [],
    {},
    [[]],
    [{}],
    {"role": []},
    {"type": "text"},
    {"messages": 5},
)


def damaged(value: Any, chance: random.Random) -> Any:
    """The value with something strange in one place, or with a key less or more."""
    if isinstance(value, list | dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        changed = value.copy()
        if isinstance(changed, dict) and chance.random() < 0.2:
            del changed[key]
        elif isinstance(changed, dict) and chance.random() < 0.2:
            changed[chance.choice(EXTRAS)] = chance.choice(STRANGE)
        else:
            changed[key] = damaged(value[key], chance)
        return changed
    return chance.choice(STRANGE)


EXTRAS = ("tools", "tool_calls", "function_call", "tool_call_id", "name", "reasoning", "weight", "train", "label")
EXTRAS += ("system", "history", "kto_tag", "images", "margin", "score_chosen", "score_rejected", "prompt", "messages")


def test_no_record_however_damaged_gives_another_error_or_a_content_that_cannot_be_written():
    outcomes = Counter()
    chance = random.Random(0)
    for seed in range(150):
        for form in FORMATS:
            assert form.write
            try:
                record = form.write(Chance(seed).content(form.data))
            except DataError:
                record = json.loads(form.example)
            for _ in range(5):
                record = damaged(record, chance)
                if not isinstance(record, dict) or not form.matches(record):
                    outcomes["strange"] += 1
                    break
                try:
                    content = form.read(record)
                except DataError as error:
                    outcomes["refused"] += 1
                    assert str(error)
                    continue
                outcomes["read"] += 1
                assert isinstance(content, CLASSES[form.data])
                if form.name in ("messages", "preference", "messages-unpaired", "completion", "prompt"):
                    form.write(content)
    assert min(outcomes.values()) > 500, outcomes


def talk(*messages: Message, tools: tuple = ()) -> Conversation:
    return Conversation(messages, tools)


HI, HELLO, WHAT = Message("user", "Hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
SYSTEM = Message("system", "Be brief.")
CALL = Message("assistant", "", calls=(ToolCall("add", {}),))
SPOKEN = talk(HI, Message("assistant", "[add()]"), Message("tool", "5"), HELLO)
TOOL = {"type": "function", "function": {"name": "add"}}
PAIR = Preference(talk(HI), (HELLO,), (WHAT,))
WRITTEN = {
    "messages": (
        talk(SYSTEM, HI, Message("assistant", "Hello!", "Hm.", weight=0.5), tools=(TOOL,)),
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello!", "reasoning_content": "Hm.", "weight": 0.5},
            ],
            "tools": [TOOL],
        },
    ),
    "sharegpt": (
        talk(HI, CALL, Message("tool", "5"), HELLO, tools=(TOOL,)),
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
                {"from": "observation", "value": "5"},
                {"from": "gpt", "value": "Hello!"},
            ],
            "tools": '[{"type": "function", "function": {"name": "add"}}]',
        },
    ),
    "alpaca": (
        talk(SYSTEM, HI, HELLO, HI, WHAT),
        {
            "instruction": "Hi",
            "input": "",
            "system": "Be brief.",
            "history": [["Hi", "Hello!"]],
            "output": "What?",
        },
    ),
    "text2text": (talk(HI, HELLO), {"input": "Hi", "output": "Hello!"}),
    "text": ("Once.", {"text": "Once."}),
    "alpaca-pair": (PAIR, {"instruction": "Hi", "input": "", "output": ["Hello!", "What?"]}),
    "response-pair": (PAIR, {"question": "Hi", "response_j": "Hello!", "response_k": "What?"}),
    "transcript-preference": (
        PAIR,
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
    ),
    "ranking": (
        Ranking(talk(HI), ("a", "b"), (1.0, 0.0)),
        {"input": "Hi", "output": [{"score": 1.0, "text": "a"}, {"score": 0.0, "text": "b"}]},
    ),
}


@pytest.mark.parametrize(("name", "content", "record"), [(name, *case) for name, case in WRITTEN.items()], ids=WRITTEN)
def test_a_record_is_written_as_other_tools_expect_it(name, content, record):
    write = NAMES[name].write
    assert write
    assert write(content) == record


REFUSED = {
    "tools": ("alpaca", talk(HI, HELLO, tools=(TOOL,)), "it has no place for tool declarations."),
    "calls": ("alpaca", talk(HI, CALL), "it has no place for calls of tools."),
    "results": ("text2text", SPOKEN, "it has no place for results of tools."),
    "weights": ("alpaca", talk(HI, Message("assistant", "x", weight=2)), "it has no place for weights of messages."),
    "reasoning": (
        "text2text",
        talk(HI, Message("assistant", "x", "Hm.")),
        "it has no place for reasoning apart from the reply.",
    ),
    "earlier turns": ("text2text", talk(HI, HELLO, HI, HELLO), "it has no place for earlier turns."),
    "text beside a call": (
        "sharegpt",
        talk(HI, Message("assistant", "Wait.", calls=CALL.calls)),
        "it has no place for text beside a call.",
    ),
    "two replies": (
        "messages-preference",
        Preference(talk(HI), (HELLO, HI, HELLO), (WHAT,)),
        "it has no place for replies of several messages.",
    ),
    "a margin": ("alpaca-pair", Preference(talk(HI), (HELLO,), (WHAT,), 1.0), "it has no place for a margin."),
    "a system message": (
        "transcript-preference",
        Preference(talk(SYSTEM, HI), (HELLO,), (WHAT,)),
        "it has no place for a system message.",
    ),
    "no reply": ("messages", talk(HI), "the conversation ends with a user message; there is no reply to learn."),
    "a reply": (
        "prompt",
        talk(HI, HELLO),
        "the prompt ends with a message of the role assistant; a user or tool message asks for a reply.",
    ),
    "nothing to prefer": (
        "preference",
        Preference(talk(HI), (HELLO,), (HELLO,)),
        "chosen and rejected are the same; there is nothing to prefer.",
    ),
    "a name of a speaker": (
        "transcript-preference",
        Preference(talk(Message("user", "Hi\n\nHuman: Ha")), (HELLO,), (WHAT,)),
        "chosen, turn 2: the role user cannot follow user; assistant comes next.",
    ),
    "an empty system message": ("alpaca", talk(Message("system", ""), HI, HELLO), "it would be read differently."),
}


@pytest.mark.parametrize(("name", "content", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_a_format_cannot_express_is_refused_with_the_reason(name, content, reason):
    form = NAMES[name]
    assert form.write
    with pytest.raises(DataError) as caught:
        form.write(content)
    assert str(caught.value) == f"the format {name} cannot express this {form.data}: {reason}"


def test_a_format_refuses_what_is_of_another_kind():
    write = NAMES["alpaca"].write
    assert write
    with pytest.raises(DataError, match=r"^the format alpaca holds Conversation, not Preference\.$"):
        write(PAIR)


def test_a_format_that_would_lose_something_cannot_write_it():
    careless = exact(
        DataFormat(
            name="careless",
            summary="",
            data="conversation",
            example="{}",
            matches=lambda record: True,
            read=lambda record: talk(HI, HELLO),
            write=lambda content: {},
        )
    )
    assert careless.write
    assert careless.write(talk(HI, HELLO)) == {}
    with pytest.raises(DataError, match="careless cannot express this conversation: it would be read differently"):
        careless.write(talk(HI, WHAT))


# Files of LMFlow

LMFLOW = {
    "text_only": {"text": "Once."},
    "text2text": {"input": "Hi", "output": "Hello!"},
    "conversation": {"conversation_id": 1, "messages": TALK},
    "paired_conversation": {"chosen": {"messages": TALK}, "rejected": {"messages": WORSE}},
    "paired_text_to_text": {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 1.5},
    "text_to_textlist": {"input": "Hi", "output": ["Hello!", "What?"]},
    "text_to_scored_textlist": {"input": "Hi", "output": [{"score": 1.0, "text": "a"}, {"score": 0.5, "text": "b"}]},
}


def lmflow(path: Path, kind: str, instance: dict[str, Any]) -> list[tuple[int, Any]]:
    path.write_text(json.dumps({"type": kind, "instances": [instance]}))
    return list(read_json(path, lambda line, problem: pytest.fail(problem)))


@pytest.mark.parametrize("kind", LMFLOW)
def test_the_instances_of_every_type_of_lmflow_fit_one_format(kind, tmp_path):
    ((_, record),) = lmflow(tmp_path / "a.json", kind, LMFLOW[kind])
    (form,) = (form for form in FORMATS if form.matches(record) and form.data != "prompt")
    assert isinstance(form.read(record), CLASSES[form.data])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("float_only", "it holds bare numbers, and no objective learns from those."),
        ("image_text", "it holds images, and lmf learns from text only."),
    ],
)
def test_the_types_of_lmflow_that_hold_no_text_to_learn_are_refused_with_the_reason(kind, reason, tmp_path):
    with pytest.raises(DataError) as caught:
        lmflow(tmp_path / "a.json", kind, {"value": 1.0})
    assert str(caught.value) == f"{tmp_path}/a.json: LMFlow's data type {kind!r} is not supported; {reason}"
