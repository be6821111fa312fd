"""The embeddings and the output head of a model for a vocabulary with other pieces.

Shapes: V is the number of old rows, R that of new ones, d the width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from lmf import ConfigError
from lmf.models import NEW_TOKENS, added_tokens
from torch import nn

from .vocabulary import Json, SentencePiece

MULTIPLE = 64  # rows of the matrices, which GPUs multiply best by
How = Literal["mean-of-pieces", "weighted", "random", "copy"]


@dataclass(frozen=True, slots=True)
class Change:
    """How the rows of one vocabulary become those of another.

    Attributes:
        kept: The old id of each piece that there was, by its new id.
        parts: The old ids of what each new piece replaces, by its id; none where nothing of old stands for it.
        bytes: How many bytes each of these stands for.
        count: How many ids there are.
    """

    kept: Mapping[int, int]
    parts: Mapping[int, Sequence[int]]
    bytes: Mapping[int, Sequence[int]]
    count: int

    @property
    def extends(self) -> bool:
        """Whether every old piece has the id that it had."""
        return all(new == old for new, old in self.kept.items())


def change_of(old: Json, new: Json, name: str) -> Change:
    """Return how a vocabulary becomes another.

    Args:
        old: The model's.
        new: The other.
        name: What the user called the other.

    Raises:
        ConfigError: The other was not made of the model's.
    """
    pieces = sorted(new.ids, key=new.ids.__getitem__)
    kept = [piece for piece in pieces if piece in old.ids]
    added = [piece for piece in pieces if piece not in old.ids]
    for piece in old.special:
        if piece not in new.ids:
            raise ConfigError(
                f"{name} lacks {piece!r}, a special token of the model: it was not made of its tokenizer."
            )
    for left, right in pairwise(kept):
        if old.ids[left] > old.ids[right]:
            raise ConfigError(
                f"{name} has {left!r} before {right!r} (ids {new.ids[left]} and {new.ids[right]}), and the model's own "
                f"tokenizer the other way round ({old.ids[left]} and {old.ids[right]}): it was not made of that, or it "
                "was pruned and then extended. Apply what was pruned first."
            )
    gone = len(old.ids) - len(kept)
    if added and (new.ids[added[0]] <= max(map(new.ids.__getitem__, kept)) or (gone and new.ids[added[0]] < len(kept))):
        raise ConfigError(
            f"{name} has new pieces among those of the model ({added[0]!r} has the id {new.ids[added[0]]}): it was not "
            "made of its tokenizer."
        )
    if not added and not gone:
        raise ConfigError(f"{name} has the pieces of the model's own tokenizer; there is nothing to change.")
    parts = {new.ids[piece]: _old_parts(old, piece) for piece in added}
    names = {id: piece for piece, id in old.ids.items()}
    return Change(
        kept={new.ids[piece]: old.ids[piece] for piece in kept},
        parts=parts,
        bytes={id: [len(old.text(names[part])) for part in several] for id, several in parts.items()},
        count=max(new.ids.values()) + 1,
    )


def _old_parts(vocabulary: Json, piece: str) -> list[int]:
    """Return the old ids of what a new piece replaces."""
    found = []
    for part in vocabulary.parts(piece):
        if part in vocabulary.ids:
            found.append(vocabulary.ids[part])
        elif isinstance(vocabulary, SentencePiece):
            names = (f"<0x{byte:02X}>" for byte in vocabulary.text(part))
            found += [vocabulary.ids[name] for name in names if name in vocabulary.ids]
    return found


def check_model(model: Any, old: Json, name: str) -> None:
    """Refuse a model that has not a row for every token of its tokenizer.

    Raises:
        ConfigError: It has fewer.
    """
    rows, most = len(model.get_input_embeddings().weight), max(old.ids.values())
    if most >= rows:
        raise ConfigError(
            f"{name}: the tokenizer has the id {most} and the embeddings {rows:,} rows: they do not belong together."
        )


def resize(model: Any, change: Change) -> list[torch.Tensor]:
    """Give a model as many rows as another vocabulary needs, and its special tokens their ids there.

    Returns:
        The old embeddings, (V, d), and what else has a row for each token; for ``begin_rows``.
    """
    before = [tensor.detach().clone() for tensor in _tensors(model)]
    added = added_tokens(model.config)  # by an earlier extension
    rows = max(change.count, len(before[0])) if change.extends else change.count
    model.resize_token_embeddings(-(-rows // MULTIPLE) * MULTIPLE, mean_resizing=False)
    new = [*change.parts, *(now for now, old in change.kept.items() if old in added)]
    if new:
        setattr(model.config, NEW_TOKENS, [min(new), max(new) + 1])
    elif added:
        delattr(model.config, NEW_TOKENS)
    configs = (model.config, model.config.get_text_config(), model.generation_config)
    for config in {id(each): each for each in configs}.values():  # of text alone, the first two are one
        _renumber(config, {old: now for now, old in change.kept.items()})
    return before


@torch.no_grad()
def begin_rows(
    model: Any, before: Sequence[torch.Tensor], change: Change, how: How, token: int | None, seed: int
) -> None:
    """Put old rows in their places as they were, bit for bit, and have new ones begin somewhere.

    Args:
        model: A model that was resized.
        before: Its old rows.
        change: How the rows change.
        how: Where new rows begin: ``mean-of-pieces``, the mean of the rows of what they replace; ``weighted``, by its
            bytes; ``random``, normal with the mean and the deviation of each column; ``copy``, the row of ``token``.
        token: An old id.
        seed: Of what is random.
    """
    for tensor, matrix in zip(_tensors(model), before, strict=True):
        tensor.copy_(_changed(matrix, len(tensor), change, how, token, seed))


def _tensors(model: Any) -> list[nn.Parameter]:
    """Return what has a row for each token: the embeddings, the head if it is another matrix, its bias."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    others = [head.weight, getattr(head, "bias", None)] if head is not None else []
    return [embeddings.weight, *(each for each in others if each is not None and each is not embeddings.weight)]


def _changed(matrix: torch.Tensor, rows: int, change: Change, how: How, token: int | None, seed: int) -> torch.Tensor:
    """Return the rows of the new vocabulary, (R, d) or (R,), of the old ones, (V, d) or (V,)."""
    wide = matrix.reshape(len(matrix), -1).float()
    found = wide.mean(0).to(matrix.dtype).repeat(rows, 1)  # what stays of it is for ids that are not used
    if change.extends:
        found[: len(matrix)] = matrix.reshape(len(matrix), -1)
    found[list(change.kept)] = matrix.reshape(len(matrix), -1)[list(change.kept.values())]
    found[list(change.parts)] = _begun(wide, change, how, token, seed).to(matrix.dtype)
    return found.reshape(rows, *matrix.shape[1:])


def _begun(wide: torch.Tensor, change: Change, how: How, token: int | None, seed: int) -> torch.Tensor:
    """Return where the rows of the n new pieces begin, (n, d) in float32, of the old ones, (V, d)."""
    mean, count = wide.mean(0), len(change.parts)
    if not count:
        return wide[:0]
    if how == "copy":
        return wide[token].expand(count, -1)
    if how == "random":
        return mean + wide.std(0) * torch.randn(count, wide.shape[1], generator=torch.Generator().manual_seed(seed))
    table = torch.cat([wide, mean[None]])  # the last one for what nothing of old stands for
    parts = [parts or [len(wide)] for parts in change.parts.values()]
    weights = [[1] * len(several) for several in parts]
    if how == "weighted":
        weights = [list(change.bytes[id]) or [1] for id in change.parts]
    flat = torch.tensor([part for several in parts for part in several])
    shares = torch.tensor([weight / sum(several) for several in weights for weight in several])
    starts = torch.tensor([0, *(len(several) for several in parts[:-1])]).cumsum(0)
    return nn.functional.embedding_bag(flat, table, starts, mode="sum", per_sample_weights=shares)


def _renumber(config: Any, numbers: Mapping[int, int]) -> None:
    """Give the special tokens that a configuration names their new ids."""
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(config, key, numbers.get(value, value))
        elif key.endswith("_token_id") and isinstance(value, list):
            setattr(config, key, [numbers.get(id, id) for id in value])
