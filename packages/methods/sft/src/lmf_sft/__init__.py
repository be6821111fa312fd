"""Supervised fine-tuning on conversations, and pretraining on plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lmf import Criterion, Objective, Record, hookimpl, option

if TYPE_CHECKING:
    from lmf.encoding.encoder import Encoder, Example


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """What of a conversation is learned."""

    loss_on: Literal["assistant", "last", "all"] = option(
        "assistant", "What is learned: the assistant's replies, the last of them, or every token."
    )
    train_end: bool = option(True, "Learn the token that ends a reply; without it the model never stops.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainOptions:
    """How documents are laid out."""

    full_windows: bool = option(
        False, "Lay documents end to end and cut them into windows of --max-tokens, whatever documents they touch."
    )


class Supervised(Criterion):
    """Learns the assistant's replies and where they end."""

    def __init__(self, options: TrainOptions):
        self.options = options

    def encode(self, records: Iterable[Record], encoder: Encoder) -> Iterator[Example]:
        return encoder.examples(records, self.options.loss_on, self.options.train_end)


class Pretraining(Criterion):
    """Learns every token of a document."""

    def __init__(self, options: PretrainOptions):
        self.options = options

    def encode(self, records: Iterable[Record], encoder: Encoder) -> Iterator[Example]:
        """Cut documents longer than ``--max-tokens`` into windows.

        Windows overlap by one token, so that every token is predicted exactly once.
        """
        documents = encoder.texts(records)
        if self.options.full_windows:
            yield from _windows(documents, encoder.max_tokens)
            return
        for whole in documents:
            for start in range(0, max(1, len(whole.ids) - 1), encoder.max_tokens - 1):
                part = slice(start, start + encoder.max_tokens)
                yield replace(whole, ids=whole.ids[part], labels=whole.labels[part])


def _windows(documents: Iterable[Example], size: int) -> Iterator[Example]:
    """Lay documents end to end and cut them into windows that overlap by one token; only the last may be shorter.

    A window is said to come from the document in which it begins.
    """
    from lmf.encoding.encoder import Example

    ids: list[int] = []  # what is not cut yet
    where: list[str] = []  # the document of each of them
    for document in documents:
        ids += document.ids
        where += [document.where] * len(document.ids)
        start = 0
        while len(ids) - start > size:
            window = ids[start : start + size]
            yield Example(window, window, where[start])
            start += size - 1
        ids, where = ids[start:], where[start:]
    if ids:
        yield Example(ids, ids, where[0])


@hookimpl
def lmf_objectives() -> list[Objective]:
    return [
        Objective(
            name="train",
            summary="Fine-tune on conversations: learn the assistant's replies.",
            data="conversation",
            options=TrainOptions,
            build=Supervised,
        ),
        Objective(
            name="pretrain",
            summary="Train on plain text: learn every token.",
            data="text",
            options=PretrainOptions,
            build=Pretraining,
        ),
    ]
