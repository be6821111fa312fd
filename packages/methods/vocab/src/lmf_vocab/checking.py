"""Tries a tokenizer on texts that nobody would write, and compares it with the one that it extends."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.convert_slow_tokenizer import TikTokenConverter

from .bases import Base
from .pieces import read_proto
from .vocabulary import Json, SentencePiece, Tiktoken, Vocabulary

EMOJI = ("🙂", "👍🏽", "👩‍👩‍👧", "🇰🇷", "1️⃣", "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿")
WORDS = (
    "hello",
    " the",
    "don't",
    " Łódź",
    "12345",
    "नमस्ते",
    " दुनिया",
    "안녕",
    " 세계",
    "日本語",
    "شكرا",
    "e\u0301",
    "ﬁ",
    "ß",
    "İ",
)
SPACES = ("\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff")
PLANES = [(0x20, 0x7F), (0xA0, 0xD800), (0xE000, 0x10000), *((plane << 16, plane + 1 << 16) for plane in range(1, 17))]


@dataclass(slots=True)
class Findings:
    """What was found wrong, each with texts that show it.

    Attributes:
        tried: How many texts were tried.
        lost: Texts of which decoding gives another.
        changed: Texts with other ids than before, though no new piece is in them.
        apart: Texts that the forms of the tokenizer cut otherwise, where those of the base agree.
        moved: Pieces and special tokens that have another id than before, or none; the chat template if it is another.
        notes: What is no fault of the extension.
    """

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many there are."""
        return sum(map(len, (self.lost, self.changed, self.apart, self.moved)))


def fuzz(count: int, seed: int, texts: Sequence[str] = ()) -> Iterator[str]:
    """Yield texts of characters of all planes of Unicode, emoji, words of many scripts and long runs of spaces.

    Args:
        count: How many.
        seed: Draws them.
        texts: Texts of which parts are drawn, too.
    """
    chance = random.Random(seed)
    makers: list[Callable[[], str]] = [
        lambda: chr(chance.randrange(*chance.choice(PLANES))),
        lambda: "".join(chr(chance.randrange(*chance.choice(PLANES[:3]))) for _ in range(chance.randrange(1, 9))),
        lambda: " " * chance.randrange(1, 40),
        lambda: chance.choice(SPACES) * chance.randrange(1, 4),
        lambda: chance.choice(EMOJI) * chance.randrange(1, 4),
        lambda: chance.choice(WORDS),
        lambda: chr(chance.randrange(0xAC00, 0xD7A4)) * chance.randrange(1, 3),
    ]
    if texts:
        makers += [lambda: _part(chance.choice(texts), chance)] * 3
    for _ in range(count):
        yield "".join(chance.choice(makers)() for _ in range(chance.randrange(1, 13)))


def check(base: Base, before: Base | None, texts: Iterator[str]) -> Findings:
    """Try a tokenizer.

    Args:
        base: The tokenizer.
        before: The one that it extends.
        texts: What it is tried on.
    """
    found, known = Findings(), _forms(base)
    old = _forms(before) if before else []
    first = before.vocabulary.old if before else 0
    if before:
        ids, were = base.vocabulary.ids, before.vocabulary.ids
        found.moved = [str(piece) for piece, id in were.items() if ids.get(piece) != id]
        same = isinstance(base.vocabulary, Json) and isinstance(before.vocabulary, Json)
        templates = [each.vocabulary.tokenizer.chat_template for each in (base, before)] if same else [None, None]  # type: ignore[attr-defined]
        found.moved += ["the chat template"] * (templates[0] != templates[1])
    was_lost = differed = 0
    for text in texts:
        found.tried += 1
        ids = known[0].encode(text)
        if known[0].decode(ids) != text:
            if old and old[0].decode(old[0].encode(text)) != text:
                was_lost += 1
            else:
                found.lost.append(text)
        if old and not any(id >= first for id in ids) and old[0].encode(text) != ids:
            found.changed.append(text)
        differed += not (agreed := len(old) < 2 or old[0].encode(text) == old[1].encode(text))
        if agreed and any(form.encode(text) != ids for form in known[1:]):
            found.apart.append(text)
    if was_lost:
        found.notes.append(f"{was_lost:,} texts are not lossless in the base either")
    if differed:
        found.notes.append(f"{differed:,} texts are cut otherwise by the forms of the base, too")
    return found


@dataclass(frozen=True, slots=True)
class _Form:
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def _forms(base: Base) -> list[_Form]:
    """Return each form of a tokenizer that its files have: that of transformers, and those of other libraries."""
    vocabulary: Vocabulary = base.vocabulary
    if isinstance(vocabulary, Tiktoken):
        assert base.file
        return [_tiktoken(vocabulary), _transformers(TikTokenConverter(str(base.file), vocabulary.pattern).converted())]
    assert isinstance(vocabulary, Json)
    forms = [_transformers(vocabulary.tokenizer)]
    if base.file and isinstance(vocabulary, SentencePiece):
        import sentencepiece

        model: Any = sentencepiece.SentencePieceProcessor()
        model.LoadFromSerializedProto(read_proto(base.file, base.file.read_bytes()).SerializeToString())
        forms.append(_Form(model.encode, model.decode))
    return forms


def _transformers(tokenizer: Any) -> _Form:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return _Form(lambda text: backend.encode(text, add_special_tokens=False).ids, backend.decode)


def _tiktoken(vocabulary: Tiktoken) -> _Form:
    import tiktoken

    encoding = tiktoken.Encoding("lmf", pat_str=vocabulary.pattern, mergeable_ranks=vocabulary.ids, special_tokens={})
    return _Form(encoding.encode_ordinary, encoding.decode)


def _part(text: str, chance: random.Random) -> str:
    start = chance.randrange(len(text))
    return text[start : start + chance.randrange(1, 30)]
