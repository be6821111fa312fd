"""Supervised fine-tuning on conversations, and pretraining on plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from lmf import Conversation, Criterion, Objective, Record, hookimpl

if TYPE_CHECKING:
    from lmf.encode import Encoder, Example


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """Supervised fine-tuning has no settings of its own yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainOptions:
    """Pretraining has no settings of its own yet."""


class Supervised(Criterion):
    """Learns the assistant's replies and where they end."""

    def encode(self, records: Sequence[Record], encoder: Encoder) -> list[Example]:
        from lmf.encode import Example

        encoded = encoder.conversations(cast(Conversation, record.data).messages for record in records)
        return [Example(*pair, record.where) for pair, record in zip(encoded, records, strict=True)]


class Pretraining(Criterion):
    """Learns every token of a document."""

    def encode(self, records: Sequence[Record], encoder: Encoder) -> list[Example]:
        """Cut documents longer than ``--max-tokens`` into blocks.

        Blocks overlap by one token, so that every token is predicted exactly once.
        """
        from lmf.encode import Example

        examples = []
        encoded = encoder.texts(cast(str, record.data) for record in records)
        for (ids, labels), record in zip(encoded, records, strict=True):
            for start in range(0, max(1, len(ids) - 1), encoder.max_tokens - 1):
                part = slice(start, start + encoder.max_tokens)
                examples.append(Example(ids[part], labels[part], record.where))
        return examples


@hookimpl
def lmf_objectives() -> list[Objective]:
    return [
        Objective(
            name="train",
            summary="Fine-tune on conversations: learn the assistant's replies.",
            data="conversation",
            options=TrainOptions,
            build=lambda options: Supervised(),
        ),
        Objective(
            name="pretrain",
            summary="Train on plain text: learn every token.",
            data="text",
            options=PretrainOptions,
            build=lambda options: Pretraining(),
        ),
    ]
