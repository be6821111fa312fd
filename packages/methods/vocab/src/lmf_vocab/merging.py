"""Pieces into a vocabulary: those of another tokenizer, or those that are learned on top of it."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lmf import ConfigError

from .vocabulary import Vocabulary


@dataclass(slots=True)
class Account:
    """What became of the pieces of another tokenizer.

    Attributes:
        wanted: How many there were.
        old: Those that the vocabulary had.
        between: Pieces that were added so that others can be reached.
        never: Those that no text is cut into: they are of several words, or not of whole characters where these count.
        unreachable: Those that only a change of old text could reach.
    """

    wanted: int = 0
    old: int = 0
    between: int = 0
    never: list[bytes] = field(default_factory=list)
    unreachable: list[bytes] = field(default_factory=list)


def merge(vocabulary: Vocabulary, pieces: Sequence[bytes]) -> Account:
    """Add the pieces of another tokenizer, in its order.

    Args:
        vocabulary: What they are added to.
        pieces: What they stand for.

    Raises:
        ConfigError: A piece contains a special token of the vocabulary.
    """
    check_special(pieces, vocabulary.special)
    account = Account(wanted=len(pieces))
    for text in pieces:
        piece = vocabulary.written(text)
        if piece is None or not _one_word(vocabulary, piece, text):
            account.never.append(text)
        elif piece in vocabulary.ids:
            account.old += 1
        else:
            before = len(vocabulary.added)
            if vocabulary.add(piece):
                account.between += len(vocabulary.added) - before - 1
            else:
                account.unreachable.append(text)
    return account


def check_special(pieces: Iterable[bytes], special: Iterable[str]) -> None:
    """Refuse pieces in which a special token is written: text would get another meaning.

    Raises:
        ConfigError: A piece is a special token, or contains one.
    """
    tokens = [token.encode() for token in special if token]
    for piece in pieces:
        for token in tokens:
            if token in piece:
                raise ConfigError(
                    f"The piece {piece.decode(errors='replace')!r} contains the special token {token.decode()!r} of "
                    "the base, so that text could stand for it. Train the new vocabulary without it."
                )


def learn(vocabulary: Vocabulary, words: Mapping[Any, int], count: int, fewest: int = 2, longest: int = 0) -> int:
    """Add the pieces that make words shortest, each of two there are, the most frequent neighbours first.

    It is the training of a byte pair encoding (arXiv:1508.07909, algorithm 1) that begins where the vocabulary ends.

    Args:
        vocabulary: What they are added to.
        words: Words as pieces are written, and how often each occurs.
        count: Most pieces to add.
        fewest: How often neighbours must occur, or a symbol that the vocabulary has not.
        longest: Most characters, or bytes, of a piece; 0 for any.

    Returns:
        How many were added.
    """
    before = len(vocabulary.added)
    symbols: Counter[Any] = Counter()
    for word, often in words.items():
        for symbol in vocabulary.symbols(word):
            symbols[symbol] += often
    common = [symbol for symbol, often in symbols.most_common() if often >= fewest and symbol not in vocabulary.ids]
    vocabulary.complete(common[:count])
    cut = [(vocabulary.parts(word), often) for word, often in words.items()]
    counts: Counter[Any] = Counter()
    where: defaultdict[Any, set[int]] = defaultdict(set)
    made: dict[Any, tuple[Any, Any]] = {}  # neighbours that are counted so

    def count_in(number: int) -> set[Any]:
        parts, often = cut[number]
        found = {vocabulary.counted(*pair): pair for pair in pairwise(parts)}
        made.update(found)
        for pair in pairwise(parts):
            counts[vocabulary.counted(*pair)] += often
        for key in found:
            where[key].add(number)
        return set(found)

    for number in range(len(cut)):
        count_in(number)
    heap = [(-often, key) for key, often in counts.items()]
    heapq.heapify(heap)
    while heap and len(vocabulary.added) - before < count:
        often, key = heapq.heappop(heap)
        if counts[key] != -often:  # it was counted anew since
            if counts[key] > 0:
                heapq.heappush(heap, (-counts[key], key))
            continue
        if -often < fewest:
            break
        left, right = made[key]
        if left not in vocabulary.ids or right not in vocabulary.ids or (longest and len(left + right) > longest):
            continue
        if left + right in vocabulary.ids:
            continue  # a piece of old that others make, and to make it of these would change old text
        vocabulary.join(left, right)
        changed = set()
        for number in where.pop(key):
            parts, frequency = cut[number]
            for pair in pairwise(parts):
                counts[vocabulary.counted(*pair)] -= frequency
            cut[number] = (vocabulary.merged(parts), frequency)
            changed |= count_in(number)
        for new in changed:
            heapq.heappush(heap, (-counts[new], new))
    return len(vocabulary.added) - before


def _one_word(vocabulary: Vocabulary, piece: Any, text: bytes) -> bool:
    """Tell whether a piece is ever asked for: text that is just it is not cut before it is merged."""
    try:
        written = text.decode()
    except UnicodeDecodeError:  # a part of a character, which others are made of
        return True
    return vocabulary.whole(written, piece)
