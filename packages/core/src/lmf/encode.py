"""Text to token ids, with the two promises that training and chat depend on.

1. Only the template can write a control token. Text of a user, a document or a reply that
   spells one is encoded as plain characters.
2. A prompt has the same ids in training and in chat: no token reaches across the point
   where the assistant starts to speak.

Honest text is encoded in one go, so its ids are those that ``apply_chat_template`` gives.
Only where that would break a promise is the conversation encoded in parts.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from .errors import LmfError
from .template import Message, Piece, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # torch's ignore_index: a position that the loss does not count


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Attributes:
        ids: Token ids, length n.
        labels: The same ids where the loss counts them, otherwise -100; length n.
        where: The records it comes from, for error messages.
    """

    ids: list[int]
    labels: list[int]
    where: str

    @property
    def weight(self) -> int:
        """The number of predictions that the loss counts; the first token is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


class Encoder:
    """Encodes pieces of text for one tokenizer and template.

    Args:
        tokenizer: A fast tokenizer of transformers.
        template: What renders conversations; None for plain text only.
        max_tokens: Longest example; an objective that can cuts its texts to that.

    Raises:
        LmfError: The tokenizer has no fast form, or lacks a token that the template needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template | None, max_tokens: int = 2048):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise LmfError(
                f"The tokenizer is a {type(tokenizer).__name__}, which has no fast form (tokenizer.json).\n"
                "Convert it with transformers, or choose a model that brings a tokenizer.json."
            )
        self.template = template
        self.max_tokens = max_tokens
        self.bos: str = tokenizer.bos_token or ""
        self.eos: str = tokenizer.eos_token or ""
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        first = tokenizer("a")["input_ids"][:1]
        self.start = self.bos if self.bos and first == [tokenizer.bos_token_id] else ""  # what opens a plain text
        controls = template.controls() if template else ""
        if "{eos}" in controls and not self.eos:
            raise LmfError(
                f"The template {template.name!r} ends replies with the tokenizer's end-of-text token, "
                "but this tokenizer has none. Choose another --template."
            )
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self.control_ids = {id for id, token in added.items() if token.special or token.content in controls}
        self._parts = _Parts(backend, {id: token for id, token in added.items() if id in self.control_ids})

    def encode(self, renderings: Sequence[Sequence[Piece]]) -> list[tuple[list[int], list[int]]]:
        """Encode many renderings. Returns (ids, labels) of each."""
        texts = ["".join(piece.text for piece in pieces) for pieces in renderings]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        return [self._label(pieces, encoding) for pieces, encoding in zip(renderings, encodings, strict=True)]

    def conversations(self, conversations: Iterable[Sequence[Message]]) -> list[tuple[list[int], list[int]]]:
        """Render and encode conversations. Returns (ids, labels) of each."""
        assert self.template
        return self.encode([self.template.render(c, bos=self.bos, eos=self.eos) for c in conversations])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation up to where the assistant starts to speak."""
        assert self.template
        return self.encode([self.template.render(messages, reply=True, bos=self.bos, eos=self.eos)])[0][0]

    def texts(self, texts: Iterable[str]) -> list[tuple[list[int], list[int]]]:
        """Encode documents, each from the tokenizer's own start to its end token. Returns (ids, labels) of each."""
        pieces = [
            [Piece(self.start, control=True), Piece(text, trained=True), Piece(self.eos, control=True, trained=True)]
            for text in texts
        ]
        return self.encode([[piece for piece in each if piece.text] for each in pieces])

    def plain(self, text: str) -> list[int]:
        """Return the ids of the beginning of a document."""
        return self.encode([[p for p in (Piece(self.start, control=True), Piece(text)) if p.text]])[0][0]

    def _label(self, pieces: Sequence[Piece], encoding: Any) -> tuple[list[int], list[int]]:
        ids, offsets = encoding.ids, encoding.offsets
        starts = [start for start, _ in offsets]
        ends = []  # where each piece ends in the text
        position = 0
        for piece in pieces:
            position += len(piece.text)
            ends.append(position)
        for i, id in enumerate(ids):
            if id in self.control_ids:
                start, end = offsets[i]
                if not all(p.control for p in pieces[bisect_right(ends, start) : bisect_left(ends, end) + 1]):
                    return self._parts.encode(pieces)
        labels = [IGNORED] * len(ids)
        for i, piece in enumerate(pieces):
            if piece.trained:
                start, end = ends[i] - len(piece.text), ends[i]
                first, last = bisect_left(starts, start), bisect_left(starts, end)
                crosses = first > 0 and offsets[first - 1][1] > start
                if crosses and not pieces[i - 1].trained:
                    return self._parts.encode(pieces)
                labels[first:last] = ids[first:last]
        return ids, labels


class _Parts:
    """Encodes a rendering in parts: control tokens by their id, text between them as plain text."""

    def __init__(self, backend: Tokenizer, controls: dict[int, Any]):
        self._backend = backend
        self._controls = controls
        self._by_text = {token.content: id for id, token in controls.items()}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._plain: Tokenizer | None = None
        self._prefix = _prefix_scheme(backend)

    def encode(self, pieces: Sequence[Piece]) -> tuple[list[int], list[int]]:
        """Encode one rendering. Returns (ids, labels)."""
        ids: list[int] = []
        labels: list[int] = []
        run: list[tuple[str, bool]] = []  # (text, trained) that no control token interrupts
        before: Any = None  # the control token that the run follows
        fresh = True  # whether the run stands at the start of the text

        def flush(after: Any = None) -> None:
            nonlocal fresh
            if before is not None and before.rstrip and run:
                run[0] = (run[0][0].lstrip(), run[0][1])
            if after is not None and after.lstrip and run:
                run[-1] = (run[-1][0].rstrip(), run[-1][1])
            text = "".join(part for part, _ in run)
            if text:
                glued = not fresh and (before is None or self._prefix == "first")
                ends, position = [], 0
                for part, _ in run:
                    position += len(part)
                    ends.append(position)
                for id, start in self._plain_ids(text, glued):
                    trained = run[min(bisect_right(ends, start), len(run) - 1)][1]
                    ids.append(id)
                    labels.append(id if trained else IGNORED)
            fresh = fresh and not text
            run.clear()

        was_trained = False
        for piece in pieces:
            if piece.trained and not was_trained:  # a reply starts: no token may reach across
                flush()
                before = None if ids else before
            was_trained = piece.trained
            rest = 0
            for match in self._pattern.finditer(piece.text) if piece.control else ():
                if match.start() > rest:
                    run.append((piece.text[rest : match.start()], piece.trained))
                rest = match.end()
                id = self._by_text[match.group()]
                flush(after=self._controls[id])
                before, fresh = self._controls[id], False
                ids.append(id)
                labels.append(id if piece.trained else IGNORED)
            if piece.text[rest:]:
                run.append((piece.text[rest:], piece.trained))
        flush()
        return ids, labels

    def _plain_ids(self, text: str, glued: bool) -> list[tuple[int, int]]:
        """Encode text without control tokens. Returns (id, start in the text) of each token.

        Args:
            text: The text.
            glued: It continues a text, so the tokenizer must not put a space before it.
        """
        if self._plain is None:
            self._plain = Tokenizer.from_str(self._backend.to_str())
            self._plain.encode_special_tokens = True  # special tokens are text like any other
        for guard in ("\n", ".", "a") if glued and self._prefix else ("",):
            encoding = self._plain.encode(guard + text, add_special_tokens=False)
            pairs = [
                (id, start - len(guard), end - len(guard))
                for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            ]
            if all(end <= 0 or start >= 0 for _, start, end in pairs):
                break
        pairs = [pair for pair in pairs if not guard or pair[1] >= 0]
        for id, start, end in pairs:
            if id in self._controls:  # the vocabulary itself has the piece: write it in two halves
                if end - start < 2:
                    raise LmfError(
                        f"{text[start:end]!r} is a control token of this tokenizer and cannot be plain text."
                    )
                head, tail = text[: start + 1], text[start + 1 :]
                offset = len(head)
                return self._plain_ids(head, glued) + [(i, s + offset) for i, s in self._plain_ids(tail, True)]
        return [(id, start) for id, start, _ in pairs]


def _prefix_scheme(backend: Tokenizer) -> str:
    """Return where a tokenizer puts a space of its own: "" nowhere, "first" or "always" (after control tokens too)."""
    spec = json.loads(backend.to_str())
    found = ""
    for part in (spec["normalizer"], spec["pre_tokenizer"]):
        for step in _steps(part):
            if step["type"] == "Prepend" or (step["type"] == "ByteLevel" and step.get("add_prefix_space")):
                found = "always"
            elif step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
                found = found or step.get("prepend_scheme", "always")
    return found


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [step for each in inner for step in _steps(each)] if inner else [part]
