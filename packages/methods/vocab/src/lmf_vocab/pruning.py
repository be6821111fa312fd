"""Leaves pieces out of a vocabulary that a text does not need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from lmf import LmfError

from .vocabulary import Json, SentencePiece, byte_piece


def needed(vocabulary: Json, texts: Sequence[str], fewest: int = 1, always: Iterable[str] = ()) -> set[str]:
    """Return the pieces that texts are cut into, those that these are merged of, and what any text may need.

    Args:
        vocabulary: The vocabulary.
        texts: The texts.
        fewest: How often a piece must occur.
        always: Pieces that stay in any case.
    """
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(vocabulary.tokenizer.encode(text, add_special_tokens=False))
    names = {id: piece for piece, id in vocabulary.ids.items()}
    wanted = {*always, *(names[id] for id, often in counts.items() if often >= fewest)}
    found = {piece for piece in vocabulary.ids if len(piece) == 1 or byte_piece(piece) is not None}
    if isinstance(vocabulary, SentencePiece):  # single characters of other texts fall back on bytes
        found = {piece for piece in found if byte_piece(piece) is not None or ord(piece) < 128} | {"▁"}
        found &= vocabulary.ids.keys()
    for piece in wanted - vocabulary.special:
        found |= _made_of(vocabulary, piece)
    return found


def check_same(before: Json, after: Any, texts: Sequence[str]) -> None:
    """Refuse a vocabulary that cuts texts into other pieces, though all that it cut them into is there.

    Raises:
        LmfError: It does.
    """
    for text in texts:
        tokens = [tokenizer.tokenize(text) for tokenizer in (before.tokenizer, after)]
        if tokens[0] != tokens[1]:
            raise LmfError(
                f"Without the pieces that are not used, {text[:40]!r} is cut into {len(tokens[1])} tokens, not "
                f"{len(tokens[0])}. Keep more of them: --base."
            )


def _made_of(vocabulary: Json, piece: str) -> set[str]:
    """Return a piece and all pieces between its symbols and it."""
    found, parts = {piece, *vocabulary.symbols(piece)}, vocabulary.symbols(piece)
    while len(parts) > 1:
        ranks = [vocabulary.rank(left, right) for left, right in pairwise(parts)]
        at = ranks.index(min(ranks))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found.add(parts[at])
    return found & vocabulary.ids.keys()
