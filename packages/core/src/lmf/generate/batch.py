"""Replies to many prompts, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from ..conversation import Content, Conversation, Message, Preference, Ranking, Unpaired
from ..settings import Sampling
from .engine import Engine, Reply


def asked(content: Content) -> Conversation:
    """Return what a record of data asks: a conversation up to where its last reply is due, or begins."""
    if isinstance(content, Preference | Ranking):
        return content.prompt
    if isinstance(content, str):
        return Conversation((Message("user", content),))
    talk = content.conversation if isinstance(content, Unpaired) else content
    said = talk.messages[:-1] if talk.messages[-1].role == "assistant" else talk.messages
    return Conversation(said, talk.tools)


def in_order(
    engine: Engine,
    prompts: Iterable[tuple[Sequence[int], Sampling]],
    *,
    n: int = 1,
    likeliest: int | None = None,
    continues: bool = False,
) -> Iterator[list[Reply]]:
    """Write replies to many prompts, as many at a time as there is room for.

    Args:
        engine: Writes them.
        prompts: The ids of each, and how replies to it are drawn; taken when there is room.
        n: Replies to each.
        likeliest: As ``Engine.submit`` has it.
        continues: As ``Engine.submit`` has it.

    Yields:
        The replies to each prompt, in order.
    """
    begun: deque[list[Reply]] = deque()

    def step() -> Iterator[list[Reply]]:
        engine.step()
        while begun and all(reply.finish for reply in begun[0]):
            yield begun.popleft()

    for ids, sampling in prompts:
        while len(engine.waiting) >= engine.most:
            yield from step()
        begun.append(engine.submit(ids, sampling, n=n, likeliest=likeliest, continues=continues))
    while begun:
        yield from step()
