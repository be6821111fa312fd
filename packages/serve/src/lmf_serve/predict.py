"""``POST /predict`` as LMFlow's server answered it: ``{"Input": ..., "History": [{"content": ...}, ...]}``.

The first item of the history is a greeting and is left out; the others are the user's and the assistant's in turn. The
user's last message may stand at the end of the history, as in ``Input``, or only there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from lmf import Message
from pydantic import BaseModel, ConfigDict, Field

from .errors import ApiError
from .requests import Asked
from .worker import Part


class Said(BaseModel):
    """A message."""

    model_config = ConfigDict(strict=True)

    content: str


class History(BaseModel):
    """A request."""

    model_config = ConfigDict(strict=True)

    Input: str = Field(min_length=1)
    History: list[Said] = []

    def messages(self) -> list[Message]:
        """Return the conversation."""
        said = [each.content for each in self.History[1:]]
        if len(said) % 2 == 0:
            said.append(self.Input)
        return [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(said)]

    def request(self) -> Asked:
        """Return how the reply is drawn: LMFlow took the likeliest token each time."""
        return Asked(model="", temperature=0.0, stream=True)


async def predicted(parts: AsyncIterator[Part]) -> AsyncIterator[str]:
    """Yield the whole text so far, each time that it grows."""
    text = ""
    try:
        async for part in parts:
            if part.text:
                text += part.text
                yield text
    except ApiError:
        return
