"""The vocabularies that can be extended, and how each cuts text into pieces.

All are byte pair encodings (arXiv:1508.07909): text is cut into words, a word into symbols, and of all neighbours
those of the lowest rank are merged until none is left that may be. What is added here has higher ranks than all
there was, so text is cut as before, and then neighbours may become a new piece. New ids come after all others.

- ``ByteLevel``: ``tokenizer.json`` of Llama 3, SmolLM2, Qwen2; symbols are bytes, each written as a character
- ``SentencePiece``: of Llama 2 and Mistral; symbols are characters, and ▁ is a space
- ``Tiktoken``: a file of ``tiktoken``; symbols are bytes
"""

from __future__ import annotations

import copy
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import regex
from lmf import ConfigError
from lmf.splits import steps_of
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

NEVER = 2**62  # the rank of neighbours that are not merged
SPACE = "▁"
SUPPORTED = (
    "A vocabulary can be extended if it is a byte pair encoding: tokenizer.json of bytes (Llama 3, SmolLM2, Qwen2) or "
    "of sentencepiece (Llama 2, Mistral), or a tiktoken file"
)
_UNIT = regex.compile(
    rf"{SPACE}*[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}|{SPACE}?[^{SPACE}\s\p{{L}}\p{{M}}\p{{N}}]+|{SPACE}+|\s"
)


class Vocabulary(ABC):
    """A vocabulary, and what was added to it.

    A piece is written as the vocabulary writes it: as a string, or as bytes in tiktoken's.

    Attributes:
        ids: The id of each piece, special tokens among them.
        old: The first new id.
        added: The new pieces in the order of their ids.
        special: The special tokens.
    """

    def __init__(self, ids: dict[Any, int], old: int, special: Collection[str]):
        self.ids, self.old, self.special = ids, old, frozenset(special)
        self.added: list[Any] = []

    @abstractmethod
    def written(self, text: bytes) -> Any:
        """Return how a piece of text is written as a piece, or None if it cannot be one."""

    @abstractmethod
    def text(self, piece: Any) -> bytes:
        """Return what a piece stands for."""

    @abstractmethod
    def words(self, text: str) -> list[Any]:
        """Cut text into words, written as pieces, between which new pieces are never learned."""

    def spelt(self, text: str) -> list[Any]:
        """Cut text that does not begin a text into words."""
        return self.words(text)

    def counted(self, left: Any, right: Any) -> Any:
        """Return what two neighbours are counted as: those that become a piece together count as one."""
        return left + right

    @abstractmethod
    def rank(self, left: Any, right: Any) -> int:
        """Return the rank of two neighbours; ``NEVER`` if they are not merged."""

    def symbols(self, word: Any) -> list[Any]:
        """Cut a word into what is merged at first."""
        return list(word)

    def whole(self, text: str, piece: Any) -> bool:
        """Tell whether text that is just a piece is not cut before it is merged."""
        return self.words(text) == [piece]

    @property
    def alphabet(self) -> list[Any]:
        """What any text may need, or else is lost in part: SmolLM2 lacks 8 of the bytes of UTF-8."""
        return [self.written(bytes([byte])) for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]

    def parts(self, word: Any) -> list[Any]:
        """Return the pieces into which a word is cut."""
        return self.merged(self.symbols(word))

    def merged(self, symbols: Sequence[Any]) -> list[Any]:
        """Return what neighbours are merged into, the lowest rank first."""
        found = list(symbols)
        while len(found) > 1:
            ranks = [self.rank(left, right) for left, right in pairwise(found)]
            best = min(ranks)
            if best == NEVER:
                break
            at = ranks.index(best)
            found[at : at + 2] = [found[at] + found[at + 1]]
        return found

    def add(self, piece: Any) -> bool:
        """Add a piece, and the pieces between it and those it is made of, unless it is there.

        Returns:
            Whether the piece can be reached now. It cannot where two of its parts are a piece of old that is made
            of others: to merge these would change old text.
        """
        self.complete(self.symbols(piece))
        parts = self.parts(piece)
        joins: list[tuple[Any, Any]] = []
        while len(parts) > 1:
            free = (at for at, (left, right) in enumerate(pairwise(parts)) if left + right not in self.ids)
            at = next(free, None)
            if at is None:
                return False
            joins.append((parts[at], parts[at + 1]))
            parts = joined(parts, *joins[-1])
        for left, right in joins:
            self.join(left, right)
        return True

    def complete(self, symbols: Sequence[Any]) -> int:
        """Add the symbols that the vocabulary has not, and return how many these were."""
        found = [symbol for symbol in dict.fromkeys(symbols) if symbol not in self.ids]
        for symbol in found:
            self._new(symbol)
        return len(found)

    def join(self, left: Any, right: Any) -> None:
        """Add the piece that two neighbours make."""
        self._new(left + right)

    def _new(self, piece: Any) -> None:
        self.ids[piece] = self.old + len(self.added)
        self.added.append(piece)


def joined(symbols: Sequence[Any], left: Any, right: Any) -> list[Any]:
    """Return symbols with a pair of neighbours merged wherever it stands, as encoding merges it."""
    found: list[Any] = []
    for symbol in symbols:
        if found and found[-1] == left and symbol == right:
            found[-1] = left + right
        else:
            found.append(symbol)
    return found


class Tiktoken(Vocabulary):
    """A file of tiktoken: two neighbours are merged if they make a piece, and its id is their rank.

    Args:
        ranks: The pieces and their ids.
        pattern: A regular expression that finds words.
        first: The first new id, after those of special tokens.
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str, first: int):
        super().__init__(dict(ranks), first, ())
        self.pattern = pattern

    def written(self, text: bytes) -> bytes | None:
        return text or None

    def text(self, piece: bytes) -> bytes:
        return piece

    def words(self, text: str) -> list[bytes]:
        return [found.group().encode() for found in regex.finditer(self.pattern, text)]

    def symbols(self, word: bytes) -> list[bytes]:
        return [word[at : at + 1] for at in range(len(word))]

    def parts(self, word: bytes) -> list[bytes]:
        return [word] if word in self.ids else super().parts(word)  # as tiktoken has it

    def rank(self, left: bytes, right: bytes) -> int:
        return self.ids.get(left + right, NEVER)


class Json(Vocabulary):
    """A vocabulary in ``tokenizer.json``.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.json: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        model = self.json["model"]
        self._apart = {each["content"]: each["id"] for each in self.json["added_tokens"]}  # taken out of text first
        self._between = regex.compile("|".join(map(regex.escape, sorted(self._apart, key=len, reverse=True))))
        special = [each["content"] for each in self.json["added_tokens"] if each["special"]]
        ids = {**model["vocab"], **self._apart}
        super().__init__(ids, max(ids.values()) + 1, special)
        self._merges = [tuple(pair) for pair in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}

    def rank(self, left: str, right: str) -> int:
        return self._ranks.get((left, right), NEVER)

    def _merge(self, left: str, right: str) -> None:
        if (left, right) not in self._ranks:
            self._ranks[left, right] = len(self._merges)
            self._merges.append((left, right))

    def texts(self, text: str) -> list[str]:
        """Return what is between the tokens that are taken out of text before it is cut."""
        return [part for part in self._between.split(text) if part] if self._apart else [text]

    def extended(self) -> Any:
        """Return a tokenizer with what was added."""
        # with the special ones, or else those would get ids after the new pieces when it is loaded
        return self._tokenizer(dict(sorted(self.ids.items(), key=lambda item: item[1])), self._merges, {})

    def having(self, pieces: Collection[str]) -> Any:
        """Return a tokenizer with some of the pieces, in their order, and all tokens that are none of them."""
        ids = sorted(self.ids.items(), key=lambda item: item[1])
        kept = [piece for piece, _ in ids if piece in pieces or piece in self._apart]
        merges = [(a, b) for a, b in self._merges if a in pieces and b in pieces and a + b in pieces]
        numbers = {piece: number for number, piece in enumerate(kept)}
        renumbered = {id: numbers[piece] for piece, id in ids if piece in numbers}
        return self._tokenizer(numbers, merges, renumbered)

    def _tokenizer(self, vocab: dict[str, int], merges: Sequence[tuple[str, str]], renumbered: dict[int, int]) -> Any:
        changed = {**self.json, "model": {**self.json["model"], "vocab": vocab, "merges": merges}}
        if renumbered:
            changed["added_tokens"] = [{**each, "id": renumbered[each["id"]]} for each in changed["added_tokens"]]
            changed["post_processor"] = _renumbered(changed["post_processor"], renumbered)
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(changed))
        return tokenizer


class ByteLevel(Json):
    """Pieces are bytes, each written as a character (GPT-2)."""

    def written(self, text: bytes) -> str | None:
        return "".join(bytes_to_unicode()[byte] for byte in text) or None

    def text(self, piece: str) -> bytes:
        return bytes(map(byte_of, piece))

    def words(self, text: str) -> list[str]:
        backend = self.tokenizer.backend_tokenizer
        normal = backend.normalizer.normalize_str if backend.normalizer else str
        parts = (normal(part) for part in self.texts(text))
        return [word for part in parts for word, _ in backend.pre_tokenizer.pre_tokenize_str(part)]

    def parts(self, word: str) -> list[str]:
        return [word] if self.json["model"]["ignore_merges"] and word in self.ids else super().parts(word)

    def counted(self, left: str, right: str) -> tuple[str, str]:
        return left, right

    def join(self, left: str, right: str) -> None:
        super().join(left, right)
        self._merge(left, right)


class SentencePiece(Json):
    """Pieces are characters; one that the vocabulary has not is cut into bytes before anything is merged."""

    def written(self, text: bytes) -> str | None:
        try:
            return text.decode().replace(" ", SPACE) or None
        except UnicodeDecodeError:
            return None

    def text(self, piece: str) -> bytes:
        byte = byte_piece(piece)
        return piece.replace(SPACE, " ").encode() if byte is None else bytes([byte])

    def words(self, text: str) -> list[str]:
        """Cut text into words with the spaces before them, digits and punctuation: where sentencepiece cuts it, too."""
        lines = (line for part in self.texts(text) for line in part.split("\n"))
        return [word for line in lines for word in self.spelt(f" {line}")]

    def spelt(self, text: str) -> list[str]:
        return _UNIT.findall(text.replace(" ", SPACE))

    def whole(self, text: str, piece: str) -> bool:
        return True  # text is one word to this tokenizer

    @property
    def alphabet(self) -> list[str]:
        return []  # what is no piece is written in pieces that stand for a byte

    def rank(self, left: str, right: str) -> int:
        id = self.ids.get(left + right, -1)
        # any neighbours that make a new piece, as sentencepiece does
        return len(self._merges) + id if id >= self.old else super().rank(left, right)

    def extended(self) -> Any:
        for piece in self.added:
            for at in range(1, len(piece)):
                if piece[:at] in self.ids and piece[at:] in self.ids:
                    self._merge(piece[:at], piece[at:])
        return super().extended()


def vocabulary_of(tokenizer: Any, name: str) -> ByteLevel | SentencePiece:
    """Return the vocabulary of a tokenizer of transformers.

    Raises:
        ConfigError: It is of another kind.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else None
    kind = found["model"]["type"] if found else type(tokenizer).__name__
    if not found or kind != "BPE" or found["model"].get("end_of_word_suffix"):
        raise ConfigError(f"The tokenizer of {name} is of the kind {kind}. {SUPPORTED}.")
    if any(step["type"] == "ByteLevel" for step in steps_of(found["pre_tokenizer"])):
        return ByteLevel(tokenizer)
    if found["model"]["byte_fallback"]:
        return SentencePiece(tokenizer)
    raise ConfigError(f"The tokenizer of {name} is a byte pair encoding without bytes. {SUPPORTED}.")


def _renumbered(part: Any, numbers: dict[int, int]) -> Any:
    """Return a part of ``tokenizer.json`` with other ids of special tokens."""
    if not part:
        return part
    if "processors" in part:
        return {**part, "processors": [_renumbered(each, numbers) for each in part["processors"]]}
    tokens = part.get("special_tokens", {})
    changed = {name: {**each, "ids": [numbers[id] for id in each["ids"]]} for name, each in tokens.items()}
    pairs = {name: [part[name][0], numbers[part[name][1]]] for name in ("cls", "sep") if name in part}
    return {**part, **pairs, **({"special_tokens": changed} if tokens else {})}


def byte_piece(piece: str) -> int | None:
    """Return the byte that a piece of sentencepiece such as ``<0x0A>`` stands for; None for other pieces."""
    return int(piece[3:5], 16) if regex.fullmatch("<0x[0-9A-F]{2}>", piece) else None


def byte_of(character: str) -> int:
    """Return the byte that a vocabulary of bytes writes as a character.

    Raises:
        KeyError: It writes none so.
    """
    return _bytes()[character]


@functools.cache
def _bytes() -> dict[str, int]:
    return {character: byte for byte, character in bytes_to_unicode().items()}
