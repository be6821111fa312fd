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
    """Pretraining has no settings of its own yet."""


class Supervised(Criterion):
    """Learns the assistant's replies and where they end."""

    def __init__(self, options: TrainOptions):
        self.options = options

    def encode(self, records: Iterable[Record], encoder: Encoder) -> Iterator[Example]:
        return encoder.examples(records, self.options.loss_on, self.options.train_end)


class Pretraining(Criterion):
    """Learns every token of a document."""

    def encode(self, records: Iterable[Record], encoder: Encoder) -> Iterator[Example]:
        """Cut documents longer than ``--max-tokens`` into blocks.

        Blocks overlap by one token, so that every token is predicted exactly once.
        """
        for whole in encoder.texts(records):
            for start in range(0, max(1, len(whole.ids) - 1), encoder.max_tokens - 1):
                part = slice(start, start + encoder.max_tokens)
                yield replace(whole, ids=whole.ids[part], labels=whole.labels[part])


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
            build=lambda options: Pretraining(),
        ),
    ]
