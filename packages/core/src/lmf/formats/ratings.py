"""The formats of replies that are rated: each on its own as good or bad, or several by rank."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..conversation import Ranking, Unpaired
from ..data.jsonfile import noun
from ..errors import DataError
from ..specs import DataFormat
from . import fields, prompts
from .conversations import (
    judged,
    read_completion,
    read_talk,
    read_task,
    write_completion,
    write_task,
)
from .dialogue import prompt
from .prompts import TALK_KEYS, TASK_KEYS, Fields, said


def _desirable(record: Fields) -> bool:
    """Return whether the last reply is good: ``label``, or LLaMA-Factory's ``kto_tag``."""
    label, tag = record.get("label"), record.get("kto_tag")
    if tag is None:
        return fields.flag("label", label)
    if isinstance(label, bool) and label != tag:
        raise DataError(f"label is {noun(label)} and kto_tag is {noun(tag)}; keep one of them.")
    return fields.flag("kto_tag", tag)


def _read_completion(record: Fields) -> Unpaired:
    fields.allow(record, TALK_KEYS | _LABELS | {"prompt", "completion"})
    return Unpaired(read_completion(record), _desirable(record))


def _write_completion(rated: Unpaired) -> dict[str, Any]:
    return write_completion(rated.conversation) | {"label": rated.desirable}


def _read_talk(record: Fields, key: str) -> Unpaired:
    fields.allow(record, TALK_KEYS | _LABELS | {key})
    return Unpaired(read_talk(record, key), _desirable(record))


def _write_talk(rated: Unpaired, key: str, label: str) -> dict[str, Any]:
    return prompts.talk_record(rated.conversation, key) | {label: rated.desirable}


def _read_task(record: Fields) -> Unpaired:
    fields.allow(record, TASK_KEYS | _LABELS | {"output"})
    return Unpaired(read_task(record), _desirable(record))


def _write_task(rated: Unpaired) -> dict[str, Any]:
    return write_task(rated.conversation) | {"kto_tag": rated.desirable}


def _read_ranking(record: Fields) -> Ranking:
    fields.allow(record, _RANKING_KEYS)
    asked = prompt([*prompts.system(record), said("user", "input", record["input"])])
    output = record["output"]
    if len(output) < 2:
        raise DataError(f"output is a list of {len(output)}; there is nothing to rank below two replies.")
    if not any(isinstance(item, dict) for item in output):
        return Ranking(asked, tuple(_reply(f"output[{number}]", item) for number, item in enumerate(output)))
    for number, item in enumerate(output):
        path = f"output[{number}]"
        if not isinstance(item, dict):
            raise DataError(f"{path} is {noun(item)}; it must be an object with 'score' and 'text', like the others.")
        for key in ("score", "text"):
            if key not in item:
                raise fields.missing(path, key, item)
    replies = tuple(_reply(f"output[{number}].text", item["text"]) for number, item in enumerate(output))
    scores = tuple(fields.number(f"output[{number}].score", item["score"]) for number, item in enumerate(output))
    return Ranking(asked, replies, scores)


def _reply(path: str, value: Any) -> str:
    text = fields.text(path, value)
    if not text.strip():
        raise DataError(f"{path} is empty; there is no reply to learn.")
    return text


def _write_ranking(ranking: Ranking) -> dict[str, Any]:
    output: list[Any] = list(ranking.replies)
    if ranking.scores:
        scored = zip(ranking.scores, ranking.replies, strict=True)
        output = [{"score": score, "text": text} for score, text in scored]
    return prompts.question_record(ranking.prompt, "input") | {"output": output}


_LABELS = frozenset({"label", "kto_tag"})
_RANKING_KEYS = frozenset({"system", "input", "output"})

FORMATS = (
    DataFormat(
        name="unpaired",
        summary="A prompt, a completion, and a label that says whether it is good.",
        data="unpaired",
        example='{"prompt": "2 + 3 =", "completion": "5", "label": true}',
        matches=lambda record: judged(record) and "prompt" in record and "completion" in record,
        read=_read_completion,
        write=_write_completion,
    ),
    DataFormat(
        name="messages-unpaired",
        summary="Messages with role and content, and a label that says whether the last one is good.",
        data="unpaired",
        example=(
            '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],'
            ' "label": true}'
        ),
        matches=lambda record: judged(record) and "messages" in record,
        read=partial(_read_talk, key="messages"),
        write=partial(_write_talk, key="messages", label="label"),
    ),
    DataFormat(
        name="sharegpt-unpaired",
        summary="A conversation with from and value, and a kto_tag that says whether the last reply is good.",
        data="unpaired",
        example=(
            '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "kto_tag": true}'
        ),
        matches=lambda record: judged(record) and "conversations" in record,
        read=partial(_read_talk, key="conversations"),
        write=partial(_write_talk, key="conversations", label="kto_tag"),
    ),
    DataFormat(
        name="alpaca-unpaired",
        summary="Instruction, input and output, and a kto_tag that says whether the output is good.",
        data="unpaired",
        example='{"instruction": "Add.", "input": "2 and 3", "output": "6", "kto_tag": false}',
        matches=lambda record: judged(record) and "instruction" in record and "output" in record,
        read=_read_task,
        write=_write_task,
    ),
    DataFormat(
        name="ranking",
        summary="An input and several outputs, with a score each if there are any, as LMFlow has them.",
        data="ranking",
        example='{"input": "2 + 3 =", "output": [{"score": 1, "text": "5"}, {"score": 0, "text": "6"}]}',
        matches=lambda record: (
            "input" in record and "instruction" not in record and isinstance(record.get("output"), list)
        ),
        read=_read_ranking,
        write=_write_ranking,
    ),
)
