"""The formats of conversations, prompts and plain texts."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..conversation import Conversation, Message
from ..errors import DataError
from ..specs import DataFormat
from . import fields, messages, toolcalls
from .dialogue import conversation, marked, prompt
from .messages import OPENAI
from .prompts import (
    TALK_KEYS,
    TASK_KEYS,
    Fields,
    answer,
    question,
    question_record,
    said,
    system,
    talk,
    talk_record,
    task,
    task_record,
    tools_record,
)


def compared(record: Fields) -> bool:
    """Whether a record compares two replies."""
    return record.get("chosen") is not None and record.get("rejected") is not None


def judged(record: Fields) -> bool:
    """Whether a record judges its reply, so that it may be one to avoid; 0 and 1 are refused where they are read."""
    label = record.get("label")
    return record.get("kto_tag") is not None or (isinstance(label, int) and label in (0, 1))


def parted(talked: Conversation) -> tuple[Conversation, Message]:
    """Return what was asked, and the last reply."""
    return Conversation(talked.messages[:-1], talked.tools), talked.messages[-1]


def read_talk(record: Fields, key: str) -> Conversation:
    """Return the conversation in a list of messages."""
    return conversation(talk(record, key), toolcalls.declared(record))


def read_task(record: Fields) -> Conversation:
    """Return the conversation in Alpaca's keys."""
    return conversation([*task(record), said("assistant", "output", record["output"])])


def write_task(talked: Conversation) -> dict[str, Any]:
    """Return the record of which ``read_task`` gives this conversation."""
    asked, reply = parted(talked)
    return task_record(asked) | {"output": messages.plain(reply)}


def read_completion(record: Fields) -> Conversation:
    """Return a prompt and its completion; what the prompt's assistant says is not learned."""
    turns = system(record) + question("prompt", record["prompt"], weight=0.0)
    return conversation(turns + answer("completion", record["completion"]), toolcalls.declared(record))


def write_completion(talked: Conversation) -> dict[str, Any]:
    """Return the record of which ``read_completion`` gives this conversation."""
    turns = marked(talked.messages)
    asked, reply = messages.write(turns[:-1], OPENAI, weight=0.0), messages.write(turns[-1:], OPENAI)
    return {"prompt": asked, "completion": reply} | tools_record(talked)


def _read_messages(record: Fields) -> Conversation:
    fields.allow(record, _MESSAGES_KEYS)
    return read_talk(record, "messages")


def _read_sharegpt(record: Fields) -> Conversation:
    fields.allow(record, _SHAREGPT_KEYS)
    return read_talk(record, "conversations")


def _read_alpaca(record: Fields) -> Conversation:
    fields.allow(record, _ALPACA_KEYS)
    return read_task(record)


def _read_text2text(record: Fields) -> Conversation:
    fields.allow(record, _TEXT2TEXT_KEYS)
    turns = [*system(record), said("user", "input", record["input"]), said("assistant", "output", record["output"])]
    return conversation(turns)


def _write_text2text(talked: Conversation) -> dict[str, Any]:
    asked, reply = parted(talked)
    return question_record(asked, "input") | {"output": messages.plain(reply)}


def _read_completion(record: Fields) -> Conversation:
    fields.allow(record, _COMPLETION_KEYS)
    return read_completion(record)


def _read_prompt(record: Fields) -> Conversation:
    fields.allow(record, _PROMPT_KEYS)
    for key in fields.given(record, _REPLIES):
        ways = f"--columns prompt=prompt,completion={key} to learn it, --columns prompt=prompt to leave it out"
        raise DataError(f"{key}: a prompt has no reply; {ways}.")
    return prompt(system(record) + question("prompt", record["prompt"]), toolcalls.declared(record))


def _write_prompt(asked: Conversation) -> dict[str, Any]:
    return {"prompt": messages.write(marked(asked.messages), OPENAI)} | tools_record(asked)


def _read_text(record: Fields) -> str:
    fields.text_only(record)
    text = fields.text("text", record["text"])
    if not text.strip():
        raise DataError("text is empty; there is nothing to learn.")
    return text


_MESSAGES_KEYS = TALK_KEYS | {"messages"}
_SHAREGPT_KEYS = TALK_KEYS | {"conversations"}
_ALPACA_KEYS = TASK_KEYS | {"output"}
_TEXT2TEXT_KEYS = frozenset({"system", "input", "output"})
_COMPLETION_KEYS = TALK_KEYS | {"prompt", "completion"}
_PROMPT_KEYS = TALK_KEYS | {"prompt"}
_REPLIES = ("response", "output", "answer", "completion")  # what others call a reply

FORMATS = (
    DataFormat(
        name="messages",
        summary="Messages with role and content, as OpenAI and LMFlow have them.",
        data="conversation",
        example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
        matches=lambda record: "messages" in record and not (compared(record) or judged(record)),
        read=_read_messages,
        write=partial(talk_record, key="messages"),
    ),
    DataFormat(
        name="sharegpt",
        summary="Conversations with from and value, as ShareGPT and Qwen have them.",
        data="conversation",
        example='{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
        matches=lambda record: "conversations" in record and not (compared(record) or judged(record)),
        read=_read_sharegpt,
        write=partial(talk_record, key="conversations"),
    ),
    DataFormat(
        name="alpaca",
        summary="Instruction, input and output; system and history if there are any.",
        data="conversation",
        example='{"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}',
        matches=lambda record: (
            "instruction" in record
            and not isinstance(record.get("output", []), list)
            and not (compared(record) or judged(record))
        ),
        read=_read_alpaca,
        write=write_task,
    ),
    DataFormat(
        name="text2text",
        summary="An input and the output to learn.",
        data="conversation",
        example='{"input": "2 + 3 =", "output": "5"}',
        matches=lambda record: (
            "input" in record and "instruction" not in record and not isinstance(record.get("output", []), list)
        ),
        read=_read_text2text,
        write=_write_text2text,
    ),
    DataFormat(
        name="completion",
        summary="A prompt and the completion to learn: texts, or lists of messages.",
        data="conversation",
        example='{"prompt": "2 + 3 =", "completion": "5"}',
        matches=lambda record: "prompt" in record and "completion" in record and not judged(record),
        read=_read_completion,
        write=write_completion,
    ),
    DataFormat(
        name="prompt",
        summary="A prompt alone, a text or a list of messages, for objectives that write the replies themselves.",
        data="prompt",
        example='{"prompt": "Write a poem about the sea."}',
        matches=lambda record: "prompt" in record and "completion" not in record and not compared(record),
        read=_read_prompt,
        write=_write_prompt,
    ),
    DataFormat(
        name="text",
        summary="A text to learn as a whole.",
        data="text",
        example='{"text": "Once upon a time ..."}',
        matches=lambda record: "text" in record,
        read=_read_text,
        write=lambda text: {"text": text},
    ),
)
