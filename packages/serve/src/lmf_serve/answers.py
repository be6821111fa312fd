"""Answers as OpenAI's API frames them: whole, or in events."""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmf import ToolCall
from lmf.generate.engine import Finish, Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DONE = b"data: [DONE]\n\n"
LEAST = -9999.0  # OpenAI's stand-in for the logarithm of 0, which JSON cannot write


def event(value: Mapping[str, Any]) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt: int, reply: int) -> dict[str, int]:
    """Return how many tokens were read and written."""
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


class Form:
    """How one answer is framed.

    Args:
        model: The name of the model.
        tokenizer: Its tokenizer.
    """

    prefix, whole, part = "", "", ""

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.id = f"{self.prefix}-{secrets.token_hex(16)}"
        self.created = int(time.time())

    def answer(self, choices: Sequence[Mapping[str, Any]], used: Mapping[str, int]) -> dict[str, Any]:
        """Return the whole answer."""
        return {**self._head(self.whole), "choices": list(choices), "usage": used}

    def chunk(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> bytes:
        """Return an event."""
        return event({**self._head(self.part), "choices": list(choices), **more})

    def begin(self, index: int) -> dict[str, Any] | None:
        """Return the choice of the first event of a reply; None if there is none."""
        return None

    def next(self, index: int, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """Return the choice of an event with text."""
        raise NotImplementedError

    def end(self, index: int, finish: Finish, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """Return the choice of the last event of a reply."""
        raise NotImplementedError

    def choice(
        self, index: int, text: str, tokens: Sequence[Token] | None, finish: Finish, calls: Sequence[ToolCall]
    ) -> dict[str, Any]:
        """Return the choice of a whole answer."""
        raise NotImplementedError

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _text(self, id: int) -> str:
        return str(self.tokenizer.decode([id]))


class ChatForm(Form):
    """Answers of ``/v1/chat/completions``."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def begin(self, index: int) -> dict[str, Any]:
        return self._delta(index, {"role": "assistant", "content": ""})

    def next(self, index: int, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        return self._delta(index, {"content": text}, self._logprobs(tokens) if tokens else None)

    def end(self, index: int, finish: Finish, calls: Sequence[ToolCall]) -> dict[str, Any]:
        listed = [{"index": number, **each} for number, each in enumerate(_called(calls))]
        return self._delta(index, {"tool_calls": listed} if calls else {}, None, "tool_calls" if calls else finish)

    def choice(
        self, index: int, text: str, tokens: Sequence[Token] | None, finish: Finish, calls: Sequence[ToolCall]
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = _called(calls)
        logprobs = None if tokens is None else self._logprobs(tokens)
        ended = "tool_calls" if calls else finish
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": ended}

    def _delta(
        self, index: int, delta: Mapping[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._token(token.id, token.logprob),
                    "top_logprobs": [self._token(*each) for each in token.likeliest],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _token(self, id: int, logprob: float) -> dict[str, Any]:
        text = self._text(id)
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(text.encode())}


class TextForm(Form):
    """Answers of ``/v1/completions``."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase):
        super().__init__(model, tokenizer)
        self._written: dict[int, int] = {}  # characters of each reply that the tokens told so far have

    def next(self, index: int, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        return self._choice(index, text, self._logprobs(index, tokens) if tokens else None, None)

    def end(self, index: int, finish: Finish, calls: Sequence[ToolCall]) -> dict[str, Any]:
        return self._choice(index, "", None, finish)

    def choice(
        self, index: int, text: str, tokens: Sequence[Token] | None, finish: Finish, calls: Sequence[ToolCall]
    ) -> dict[str, Any]:
        return self._choice(index, text, None if tokens is None else self._logprobs(index, tokens), finish)

    def _choice(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._written.get(index, 0))
            self._written[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(token.logprob, LEAST) for token in tokens],
            "top_logprobs": [{self._text(id): max(value, LEAST) for id, value in each.likeliest} for each in tokens],
            "text_offset": offsets,
        }


def _called(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Return calls as OpenAI writes them, each with an id."""
    return [
        {
            "id": call.id or _call_id(),
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in calls
    ]


def _call_id() -> str:
    """Return nine letters and digits: what the templates of Mistral want."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
