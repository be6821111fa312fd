"""The formats of preferences: two replies to one prompt, of which one is better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..conversation import Conversation, Message, Preference
from ..data.jsonfile import noun
from ..errors import DataError
from ..specs import DataFormat
from . import fields, messages, prompts, toolcalls
from .conversations import compared
from .dialogue import Turn, conversation, marked, prompt
from .messages import OPENAI
from .prompts import NOTATIONS, TALK_KEYS, TASK_KEYS, Fields, said


def preference(
    asked: Sequence[Turn],
    chosen: Sequence[Turn],
    rejected: Sequence[Turn],
    tools: Sequence[Any] = (),
    margin: float | None = None,
) -> Preference:
    """Return two different replies to one prompt, each of which makes a conversation with it.

    Raises:
        DataError: The replies are the same, or a conversation breaks a rule.
    """
    start = prompt(asked, tools)
    better, worse = _reply(asked, chosen), _reply(asked, rejected)
    if better == worse:
        raise DataError("chosen and rejected are the same; there is nothing to prefer.")
    return Preference(start, better, worse, margin)


def _reply(asked: Sequence[Turn], reply: Sequence[Turn]) -> tuple[Message, ...]:
    if reply and reply[-1].message.role != "assistant":
        raise DataError(f"{reply[-1].path} has the role {reply[-1].message.role}; the assistant ends a reply.")
    return conversation([*asked, *reply]).messages[len(asked) :]


def _common(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
    """Return how many messages two conversations begin with alike, up to where the assistant replies."""
    common = 0
    for number, (better, worse) in enumerate(zip(chosen, rejected, strict=False)):
        if better.message.role == "assistant" == worse.message.role:
            common = number
        if better.message != worse.message:
            break
    if not common:
        raise DataError("chosen and rejected do not begin with the same messages; there is no prompt to reply to.")
    return common


def _margin(record: Fields) -> float | None:
    """Return how much better the chosen reply is, from a margin or from two scores."""
    if record.get("margin") is not None:
        margin = fields.number("margin", record["margin"])
        if margin < 0:
            raise DataError(f"margin is {noun(record['margin'])}; it must be at least 0.")
        return margin
    for better, worse in _SCORES:
        if record.get(better) is not None and record.get(worse) is not None:
            margin = fields.number(better, record[better]) - fields.number(worse, record[worse])
            if margin < 0:
                raise DataError(f"{better} is less than {worse}; the chosen reply is the better one.")
            return margin
    return None


def _margin_record(pair: Preference) -> dict[str, Any]:
    return {} if pair.margin is None else {"margin": pair.margin}


def _single(pair: Preference) -> Sequence[Message]:
    """Return the two replies, if each is one message."""
    replies = (*pair.chosen, *pair.rejected)
    if len(replies) > 2:
        raise DataError("it has no place for replies of several messages.")
    return replies


# A prompt and two replies, or two conversations with one beginning


def _read_preference(record: Fields) -> Preference:
    start, *replies = (record.get(key) for key in ("prompt", "chosen", "rejected"))
    if isinstance(start, str) and _ASKS.fullmatch(start) and all(isinstance(reply, str) for reply in replies):
        whole = {key: start + record[key] for key in ("chosen", "rejected")}  # HH-RLHF, cut where the replies begin
        return _read_transcript({key: value for key, value in record.items() if key != "prompt"} | whole)
    fields.allow(record, _KEYS | {"prompt", "messages"})
    if record.get("messages") not in (None, [], record["chosen"]):
        raise DataError("messages differs from chosen; keep one of messages and prompt.")
    (chosen, tools), (rejected, other_tools) = _replied("chosen", record), _replied("rejected", record)
    if tools != other_tools:
        raise DataError("chosen.tools and rejected.tools differ; both replies have the same tools.")
    tools, margin = toolcalls.declared(record) or tools, _margin(record)
    if not _begins(chosen) and not _begins(rejected):
        if record.get("prompt") is None:
            raise DataError("chosen begins with a reply, and no key prompt says to what.")
        asked = prompts.system(record) + prompts.question("prompt", record["prompt"])
        return preference(asked, chosen, rejected, tools, margin)
    chosen, rejected = prompts.system(record) + chosen, prompts.system(record) + rejected
    common = _common(chosen, rejected)
    _check_prompt(record.get("prompt"), chosen[:common])
    return preference(chosen[:common], chosen[common:], rejected[common:], tools, margin)


def _replied(key: str, record: Fields) -> tuple[list[Turn], tuple[Any, ...]]:
    """Return the messages of a reply, or of a conversation that ends with it, and the tools it declares."""
    value = record[key]
    if isinstance(value, dict) and "messages" in value:  # LMFlow's paired_conversation
        path = f"{key}."
        fields.allow(value, TALK_KEYS | {"messages"}, path)
        return prompts.talk(value, "messages", path), toolcalls.declared(value, path)
    if isinstance(value, dict):
        return [messages.turn(key, value, OPENAI)], ()
    return prompts.answer(key, value), ()


def _begins(turns: Sequence[Turn]) -> bool:
    """Whether messages are a conversation from its beginning, and not only a reply."""
    return bool(turns) and turns[0].message.role != "assistant"


def _check_prompt(value: Any, asked: Sequence[Turn]) -> None:
    """Check that a prompt says what both conversations begin with."""
    if value is None:
        return
    known = [turn.message for turn in asked]
    if isinstance(value, str):  # of several questions, which one it repeats differs from data set to data set
        same = any(message.role == "user" and message.content.strip() == value.strip() for message in known)
    else:
        same = [turn.message for turn in prompts.question("prompt", value)] in (known, known[1:])
    if not same:
        raise DataError("prompt is not what chosen and rejected begin with.")


def _write_preference(pair: Preference) -> dict[str, Any]:
    count = len(pair.prompt.messages)
    better, worse = (marked(pair.prompt.messages + reply) for reply in (pair.chosen, pair.rejected))
    return {
        "prompt": messages.write(better[:count], OPENAI),
        "chosen": messages.write(better[count:], OPENAI),
        "rejected": messages.write(worse[count:], OPENAI),
        **prompts.tools_record(pair.prompt),
        **_margin_record(pair),
    }


# Messages, and two that may follow


def _read_talk(record: Fields, key: str) -> Preference:
    fields.allow(record, _KEYS | {key})
    asked = prompts.talk(record, key)
    chosen, rejected = ([_next(name, record[name], key, asked)] for name in ("chosen", "rejected"))
    return preference(asked, chosen, rejected, toolcalls.declared(record), _margin(record))


def _next(name: str, value: Any, key: str, asked: Sequence[Turn]) -> Turn:
    if isinstance(value, str):
        return said("assistant", name, value)
    if isinstance(value, list) and len(value) == 1:
        name, value = f"{name}[0]", value[0]
    return messages.turn(name, value, NOTATIONS[key], asked)


def _write_talk(pair: Preference, key: str) -> dict[str, Any]:
    chosen, rejected = messages.write([Turn("", reply) for reply in _single(pair)], NOTATIONS[key])
    return {**prompts.talk_record(pair.prompt, key), "chosen": chosen, "rejected": rejected, **_margin_record(pair)}


# Texts


def _read_task(record: Fields) -> Preference:
    fields.allow(record, _TASK_KEYS)
    chosen, rejected = ([said("assistant", key, record[key])] for key in ("chosen", "rejected"))
    return preference(prompts.task(record), chosen, rejected, margin=_margin(record))


def _write_task(pair: Preference) -> dict[str, Any]:
    chosen, rejected = map(messages.plain, _single(pair))
    return {**prompts.task_record(pair.prompt), "chosen": chosen, "rejected": rejected, **_margin_record(pair)}


def _read_pair(record: Fields) -> Preference:
    fields.allow(record, TASK_KEYS | {"output"})
    output = record["output"]
    if len(output) != 2:
        raise DataError(f"output is a list of {len(output)}; it must hold two replies, the better one first.")
    chosen, rejected = ([said("assistant", f"output[{number}]", reply)] for number, reply in enumerate(output))
    return preference(prompts.task(record), chosen, rejected)


def _write_pair(pair: Preference) -> dict[str, Any]:
    if pair.margin is not None:
        raise DataError("it has no place for a margin.")
    return {**prompts.task_record(pair.prompt), "output": list(map(messages.plain, _single(pair)))}


def _read_responses(record: Fields) -> Preference:
    fields.allow(record, _RESPONSE_KEYS)
    asked = [*prompts.system(record), said("user", "question", record["question"])]
    chosen, rejected = ([said("assistant", key, record[key])] for key in ("response_j", "response_k"))
    return preference(asked, chosen, rejected, margin=_margin(record))


def _write_responses(pair: Preference) -> dict[str, Any]:
    chosen, rejected = map(messages.plain, _single(pair))
    asked = prompts.question_record(pair.prompt, "question")
    return {**asked, "response_j": chosen, "response_k": rejected, **_margin_record(pair)}


# Transcripts


def _read_transcript(record: Fields) -> Preference:
    fields.allow(record, _MARGIN_KEYS | {"chosen", "rejected"})
    chosen, rejected = _transcript("chosen", record["chosen"]), _transcript("rejected", record["rejected"])
    common = _common(chosen, rejected)
    return preference(chosen[:common], chosen[common:], rejected[common:], margin=_margin(record))


def _transcript(key: str, value: Any) -> list[Turn]:
    before, *parts = _SPEAKER.split(fields.text(key, value))
    if before.strip():
        raise DataError(f"{key} does not begin with 'Human: '; each turn stands after a blank line and that name.")
    speakers, texts = parts[::2], parts[1::2]
    return [
        said("user" if speaker == "Human" else "assistant", f"{key}, turn {number}", text)
        for number, (speaker, text) in enumerate(zip(speakers, texts, strict=True), 1)
    ]


def _write_transcript(pair: Preference) -> dict[str, Any]:
    chosen, rejected = (_spelled(pair.prompt, reply) for reply in (pair.chosen, pair.rejected))
    return {"chosen": chosen, "rejected": rejected, **_margin_record(pair)}


def _spelled(asked: Conversation, reply: tuple[Message, ...]) -> str:
    texts = prompts.texts(Conversation(asked.messages + reply, asked.tools))
    if asked.messages[0].role == "system":
        raise DataError("it has no place for a system message.")
    return "".join(f"\n\n{('Human', 'Assistant')[number % 2]}: {text}" for number, text in enumerate(texts))


def _shape(record: Fields) -> str:
    """Return the name of the format of a record that compares two replies, or ""."""
    if not compared(record):
        return ""
    if record.get("prompt") is not None:
        return "preference"
    for key, name in _BESIDE.items():
        if key in record:
            return name
    chosen = record["chosen"]
    if isinstance(chosen, str):
        return "transcript-preference" if _SPEAKER.match(chosen) else ""
    return "preference"


_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_ASKS = re.compile(r"(?:\n\n)?Human: ?.*\n\nAssistant: ?", re.DOTALL)
_BESIDE = {
    "messages": "messages-preference",
    "conversations": "sharegpt-preference",
    "instruction": "alpaca-preference",
}
_SCORES = tuple(
    (form.format("chosen"), form.format("rejected")) for form in ("score_{}", "{}_score", "{}_rating", "{}-rating")
)
_MARGIN_KEYS = frozenset({"margin"}.union(*_SCORES))
_KEYS = TALK_KEYS | _MARGIN_KEYS | {"chosen", "rejected"}
_TASK_KEYS = TASK_KEYS | _MARGIN_KEYS | {"chosen", "rejected"}
_RESPONSE_KEYS = _MARGIN_KEYS | {"system", "question", "response_j", "response_k"}

FORMATS = (
    DataFormat(
        name="preference",
        summary="Chosen and rejected: replies to a prompt, or conversations that begin alike.",
        data="preference",
        example='{"prompt": "2 + 3 =", "chosen": "5", "rejected": "6"}',
        matches=lambda record: _shape(record) == "preference",
        read=_read_preference,
        write=_write_preference,
    ),
    DataFormat(
        name="messages-preference",
        summary="Messages with role and content, and a chosen and a rejected message that may follow.",
        data="preference",
        example=(
            '{"messages": [{"role": "user", "content": "Hi"}],'
            ' "chosen": {"role": "assistant", "content": "Hello!"},'
            ' "rejected": {"role": "assistant", "content": "What?"}}'
        ),
        matches=lambda record: _shape(record) == "messages-preference",
        read=partial(_read_talk, key="messages"),
        write=partial(_write_talk, key="messages"),
    ),
    DataFormat(
        name="sharegpt-preference",
        summary="A conversation with from and value, and a chosen and a rejected message that may follow.",
        data="preference",
        example=(
            '{"conversations": [{"from": "human", "value": "Hi"}],'
            ' "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {"from": "gpt", "value": "What?"}}'
        ),
        matches=lambda record: _shape(record) == "sharegpt-preference",
        read=partial(_read_talk, key="conversations"),
        write=partial(_write_talk, key="conversations"),
    ),
    DataFormat(
        name="alpaca-preference",
        summary="Instruction and input, and a chosen and a rejected output.",
        data="preference",
        example='{"instruction": "Add.", "input": "2 and 3", "chosen": "5", "rejected": "6"}',
        matches=lambda record: _shape(record) == "alpaca-preference",
        read=_read_task,
        write=_write_task,
    ),
    DataFormat(
        name="alpaca-pair",
        summary="Instruction and input, and two outputs in a list, the better one first, as LLM-Genie has them.",
        data="preference",
        example='{"instruction": "Add.", "input": "2 and 3", "output": ["5", "6"]}',
        matches=lambda record: (
            "instruction" in record and isinstance(record.get("output"), list) and not compared(record)
        ),
        read=_read_pair,
        write=_write_pair,
    ),
    DataFormat(
        name="response-pair",
        summary="A question and two responses, j the better one, as StackExchange's pairs have them.",
        data="preference",
        example='{"question": "2 + 3 =", "response_j": "5", "response_k": "6"}',
        matches=lambda record: (
            "question" in record and "response_j" in record and "response_k" in record and not compared(record)
        ),
        read=_read_responses,
        write=_write_responses,
    ),
    DataFormat(
        name="transcript-preference",
        summary="Two transcripts of Human and Assistant that begin alike, as HH-RLHF has them.",
        data="preference",
        example=(
            '{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: What?"}'
        ),
        matches=lambda record: _shape(record) == "transcript-preference",
        read=_read_transcript,
        write=_write_transcript,
    ),
)
