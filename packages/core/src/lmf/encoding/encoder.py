"""Text to token ids, with the two promises that training and chat depend on.

1. Only the template can write a control token. Text of a user, a document or a reply that
   spells one is encoded as plain characters.
2. A prompt has the same ids in training and in chat: no token reaches across the point
   where the assistant starts to speak.

Both hold by construction. A rendering is cut into control tokens, which get their ids by
name, and the text between them, which is also cut where a reply starts; each text is
encoded by a tokenizer that knows no control tokens. Elsewhere a tokenizer makes the same
cuts, so honest conversations have the ids that ``apply_chat_template`` gives.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from tokenizers import Tokenizer

from ..conversation import Conversation, Message, Record
from ..errors import DataError, LmfError, several
from ..templates import thoughts
from ..templates.jinja import AnyTemplate, JinjaTemplate
from ..templates.shield import Shield
from ..templates.template import Piece, Template
from .private import plain_tokenizers, unknown_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_SPACE += "\u2028\u2029\u202f\u205f\u3000"  # white space in Unicode, as Rust has it; Python's strip takes more
IGNORED = -100  # torch's ignore_index: a position that the loss does not count
LossOn = Literal["assistant", "last", "all"]
_CUT = "\U0003134a"  # marks where a prefill ends: a rare letter, which no template trims, escapes or looks for
CHUNK = 500_000  # characters at a time; what the tokenizer returns takes some 200 bytes a token
AHEAD = 1  # chunks that the tokenizer may have ready while it works on the next


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Attributes:
        ids: Token ids, length n.
        labels: The same ids where the loss counts them, otherwise -100; length n.
        where: The records it comes from, for error messages.
        weights: How much the loss counts each label; None if 1 throughout. Length n.
    """

    ids: list[int]
    labels: list[int]
    where: str
    weights: list[float] | None = None

    @property
    def trained(self) -> int:
        """The number of predictions that the loss counts; the first token is never predicted."""
        labels = self.labels
        return len(labels) - labels.count(IGNORED) - (labels[:1] not in ([], [IGNORED]))

    @property
    def weight(self) -> float:
        """What the predictions that the loss counts weigh together."""
        if self.weights is None:
            return self.trained
        counted = zip(self.labels[1:], self.weights[1:], strict=True)
        return sum(weight for label, weight in counted if label != IGNORED)


class _Fixed(NamedTuple):
    """A control token, or several and what a template always writes between them, already encoded.

    Attributes:
        ids: Their ids.
        labels: The same where the loss counts them, otherwise -100.
        weight: How much the loss counts them; 0 if not at all.
    """

    ids: list[int]
    labels: list[int]
    weight: float


class _Text(NamedTuple):
    """Text between control tokens.

    Attributes:
        text: The text.
        trained: How many of its characters are a reply's; they come first, for where a reply starts a text starts.
        weight: How much the loss counts these.
        glued: It continues a text, so the tokenizer must not put a space of its own before it.
    """

    text: str
    trained: int
    weight: float
    glued: bool


_Part = _Fixed | _Text


class Encoder:
    """Encodes pieces of text for one tokenizer and template.

    Args:
        tokenizer: A fast tokenizer of transformers.
        template: What renders conversations; None for plain text only.
        max_tokens: Longest example; an objective that can cuts its texts to that.
        on_bad_record: Whether a record that the template has no place for is an error.

    Attributes:
        backend: The tokenizer of the library tokenizers.
        control_ids: The tokens that only a template can write: the tokenizer's special
            tokens and those that the template names.
        end_ids: Those of them that end a reply; without a template, the one that ends a text.
        bos_id: The one that begins a text, or None.
        refused: The records that were skipped, each with the reason.
        split: How many conversations became several examples.
        learns_ends: Whether what ends a reply is learned.

    Raises:
        LmfError: The tokenizer has no fast form, or lacks a token that the template needs.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: AnyTemplate | None,
        max_tokens: int = 2048,
        on_bad_record: Literal["error", "skip"] = "error",
    ):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise LmfError(
                f"The tokenizer is a {type(tokenizer).__name__}, which has no fast form (tokenizer.json).\n"
                "Convert it with transformers, or choose a model that brings a tokenizer.json."
            )
        self.backend = backend
        self.template = template
        self.max_tokens = max_tokens
        self.on_bad_record = on_bad_record
        self.refused: list[str] = []
        self.split = 0
        self.learns_ends = True
        self.bos = str(tokenizer.bos_token or "")
        self.eos = str(tokenizer.eos_token or "")
        named = {token: backend.token_to_id(token) for token in template.tokens} if template else {}
        if template and "{eos}" in template.controls() and not self.eos:
            raise LmfError(
                f"The template {template.name!r} ends replies with the tokenizer's end-of-text token, "
                "but this tokenizer has none. Choose another --template."
            )
        if template and (missing := [token for token, id in named.items() if id is None]):
            raise LmfError(
                f"The template {template.name!r} writes {', '.join(missing)}, which this tokenizer has no token for. "
                "Choose another --template."
            )
        added = tokenizer.added_tokens_decoder
        self._ids = {token.content: id for id, token in added.items() if token.special}
        self._ids |= {token: id for token, id in named.items() if id is not None}
        self.control_ids = frozenset(self._ids.values())
        # tokens that swallow the white space before or after them
        self._lstrip = {token.content for token in added.values() if token.lstrip}
        self._rstrip = {token.content for token in added.values() if token.rstrip}
        ends = template.stops(self.eos) if template else (self.eos,)
        self.end_ids = frozenset(self._ids[end] for end in ends if end in self._ids)
        self.bos_id = self._ids.get(self.bos)
        self._shield = Shield(self._ids)
        self._hidden_thoughts = thoughts.hidden(template, self._ids)
        self._constant = isinstance(template, Template)  # what such a template writes itself is always the same
        self._known: dict[tuple[str, float], tuple[str, _Fixed | None, str, str, str]] = {}  # by _constants
        self._unknown = unknown_id(backend)
        *self._tokenizers, self._prefix = plain_tokenizers(backend)
        first = tokenizer("a")["input_ids"][:1]
        self.start = self.bos if self.bos and first == [tokenizer.bos_token_id] else ""  # what opens a plain text

    def encode(self, renderings: Iterable[Sequence[Piece]]) -> list[Example]:
        """Encode many renderings; the examples come from nowhere in particular."""
        return list(self._encode(("", self._split(pieces)) for pieces in renderings))

    def examples(
        self, records: Iterable[Record], loss_on: LossOn = "assistant", train_end: bool = True
    ) -> Iterator[Example]:
        """Render and encode conversations, as they are asked for.

        Args:
            records: Records of the kind "conversation".
            loss_on: What is learned: the assistant's replies as their weights say, the last one, or every token.
            train_end: Learn the token that ends a reply, too.

        Returns:
            In order, an example for each conversation; several where the template needs it.

        Raises:
            DataError: The template has no place for something in them; raised at the end, for all of them.
        """
        template = self.template
        assert template
        self.learns_ends = train_end
        problems: list[str] = []

        def renderings() -> Iterator[tuple[str, list[_Part]]]:
            for record in records:
                try:
                    parts = self._parts(template, cast(Conversation, record.data), loss_on)
                except DataError as error:
                    problems.append(f"{record.where}: {error}")
                    continue
                self.split += len(parts) > 1
                for each in parts:
                    yield record.where, each

        for example in self._encode(renderings()):
            if loss_on == "all":
                example = replace(example, labels=example.ids, weights=None)
            if not train_end:
                labels = [IGNORED if id in self.end_ids else id for id in example.labels]
                example = replace(example, labels=labels)
            yield example
        if problems and self.on_bad_record == "error":
            raise DataError(several(problems))
        self.refused += problems

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), prefill: str = ""
    ) -> list[int]:
        """Return the ids of a conversation up to where the assistant speaks on.

        Args:
            messages: The conversation.
            tools: The tools that the assistant may call.
            prefill: What the assistant has said already of its reply, or begun to think, from ``<think>`` on.
        """
        template = self.template
        assert template
        thinks = prefill.lstrip().startswith(thoughts.BEGIN)
        if not prefill or thinks:
            guarded, back = self._guard(template, Conversation(tuple(messages), tuple(tools)))
            pieces = template.render(guarded.messages, tools=guarded.tools, reply=True, bos=self.bos, eos=self.eos)
            if thinks:
                pieces += thoughts.begun("".join(piece.text for piece in pieces), prefill, self._hidden_thoughts)
        else:
            said = (*messages, Message("assistant", prefill + _CUT))
            guarded, back = self._guard(template, Conversation(said, tuple(tools)))
            pieces = _until_cut(template.examples(guarded, bos=self.bos, eos=self.eos)[-1])
        return next(self._encode([("", self._split(pieces, back))])).ids

    def texts(self, records: Iterable[Record]) -> Iterator[Example]:
        """Encode records of the kind "text", each from the tokenizer's own start to its end token."""
        return self._encode((record.where, self._document(cast(str, record.data))) for record in records)

    def plain(self, text: str) -> list[int]:
        """Return the ids of the beginning of a document."""
        ids = next(self._encode([("", self._document(text))])).ids
        return ids[:-1] if self.eos else ids

    def _document(self, text: str) -> list[_Part]:
        start = [self._control(self.start, 0)] if self.start else []
        end = [self._control(self.eos, 1)] if self.eos else []
        return [*start, _Text(text, len(text), 1, glued=False), *end]

    def _control(self, token: str, weight: float) -> _Fixed:
        id = self._ids[token]
        return _Fixed([id], [id if weight else IGNORED], weight)

    def _parts(self, template: AnyTemplate, conversation: Conversation, loss_on: LossOn) -> list[list[_Part]]:
        """Render a conversation as one or several examples, cut for encoding."""
        if loss_on != "assistant":
            conversation = _counted(conversation, loss_on)
        guarded, back = self._guard(template, conversation)
        renderings = template.examples(guarded, bos=self.bos, eos=self.eos)
        if loss_on == "all" and len(renderings) > 1:  # each shows what stands before its reply: that would count again
            renderings = [template.render(guarded.messages, tools=guarded.tools, bos=self.bos, eos=self.eos)]
        return [self._split(pieces, back) for pieces in renderings]

    def _guard(self, template: AnyTemplate, conversation: Conversation) -> tuple[Conversation, dict[int, str]]:
        if not isinstance(template, JinjaTemplate):
            return conversation, {}
        return self._shield.guard(thoughts.apart(conversation) if self._hidden_thoughts else conversation)

    def _split(self, pieces: Iterable[Piece], back: Mapping[int, str] = MappingProxyType({})) -> list[_Part]:
        """Cut a rendering at its control tokens and where a reply starts; ``back`` lifts a shield."""
        parts: list[_Part] = []
        run: list[str] = []  # the text since the last cut
        learned = 0  # how many of its characters are a reply's
        weight = 0.0  # of these
        before = ""  # the control token just before it

        def cut(after: str = "") -> None:
            nonlocal learned
            text = "".join(run)
            if before in self._rstrip:
                learned = max(0, learned - len(text) + len(text := text.lstrip(_SPACE)))
            if after in self._lstrip:
                text = text.rstrip(_SPACE)
            if text:
                glued = bool(parts) and (self._prefix == "first" or isinstance(parts[-1], _Text))
                parts.append(_Text(text.translate(back) if back else text, learned, weight, glued))
            run.clear()
            learned = 0

        trained = False
        for piece in pieces:
            text = piece.text
            if piece.trained and not trained:  # a reply starts
                if run:
                    cut()
                before = ""
                weight = piece.weight
            trained = piece.trained
            if piece.control and self._constant:
                text, fixed, last, first_token, last_token = self._constants(text, piece.weight * trained)
                if fixed:
                    if text:
                        run.append(text)
                        learned += len(text) * trained
                    if run:
                        cut(after=first_token)
                    parts.append(fixed)
                    text, before = last, last_token
            elif piece.control:
                *texts, text = self._shield.split(text)  # text, token, text, token, ...
                for other, token in zip(texts[::2], texts[1::2], strict=True):
                    if other:
                        run.append(other)
                        learned += len(other) * trained
                    if run:
                        cut(after=token)
                    parts.append(self._control(token, piece.weight * trained))
                    before = token
            if text:
                run.append(text)
                learned += len(text) * trained
        if run:
            cut()
        return parts

    def _constants(self, text: str, weight: float) -> tuple[str, _Fixed | None, str, str, str]:
        """Cut a constant text at its control tokens.

        Returns:
            The text before the first one, what stands from the first to the last, the text behind the last one,
            and the first and the last one.
        """
        key = text, weight
        if key not in self._known:
            first, *rest = self._shield.split(text)
            if rest:
                *middle, last = rest  # a token, and for each more a text and a token
                self._known[key] = first, self._fixed(middle, weight), last, middle[0], middle[-1]
            else:
                self._known[key] = first, None, "", "", ""
        return self._known[key]

    def _fixed(self, texts: Sequence[str], weight: float) -> _Fixed:
        """Encode control tokens and the texts between them."""
        ids: list[int] = []
        for i, text in enumerate(texts):
            if i % 2 == 0:
                ids.append(self._ids[text])
                continue
            if texts[i - 1] in self._rstrip:
                text = text.lstrip(_SPACE)
            if texts[i + 1] in self._lstrip:
                text = text.rstrip(_SPACE)
            part = _Text(text, 0, 0, glued=self._prefix == "first")
            ids += self._encode_texts([part])[part][0] if text else []
        return _Fixed(ids, ids if weight else [IGNORED] * len(ids), weight)

    def _encode(self, renderings: Iterable[tuple[str, list[_Part]]]) -> Iterator[Example]:
        """Encode renderings, each with where it comes from.

        The tokenizer, which needs no interpreter, works on some chunks while the next is rendered.
        """
        waiting: deque[tuple[list[tuple[str, list[_Part]]], Future[dict[_Text, tuple[list[int], int]]]]] = deque()
        with ThreadPoolExecutor(1) as tokenizing:
            for chunk, texts in _chunks(renderings):
                waiting.append((chunk, tokenizing.submit(self._encode_texts, texts)))
                if len(waiting) > AHEAD:
                    before, known = waiting.popleft()
                    yield from _joined(before, known.result())
            for before, known in waiting:
                yield from _joined(before, known.result())

    def _encode_texts(self, parts: Iterable[_Text]) -> dict[_Text, tuple[list[int], int]]:
        """Encode texts. Returns the ids of each, and how many of them are trained."""
        known = {}
        for glued, tokenizer in enumerate(self._tokenizers):
            own = [part for part in parts if part.glued == glued]
            encodings = tokenizer.encode_batch_fast([part.text for part in own], add_special_tokens=False)
            for part, encoding in zip(own, encodings, strict=True):
                ids = encoding.ids
                if 0 < part.trained < len(part.text) or not self.control_ids.isdisjoint(ids):
                    ids, starts = self._located(part)
                    known[part] = ids, sum(start < part.trained for start in starts)
                else:
                    known[part] = ids, len(ids) if part.trained else 0
        return known

    def _located(self, part: _Text) -> tuple[list[int], list[int]]:
        """Encode a text, cut wherever the vocabulary itself has a control token. Returns ids and their starts in it."""
        cuts = {0, len(part.text)}
        while True:
            ids, starts, more = [], [], set()
            for begin, end in itertools.pairwise(sorted(cuts)):
                tokenizer = self._tokenizers[part.glued or begin > 0]
                encoding = tokenizer.encode(part.text[begin:end], add_special_tokens=False)
                for id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                    ids.append(id)
                    starts.append(begin + start)
                    spelled = part.text[begin + start : begin + stop]
                    if id not in self.control_ids or (id == self._unknown and spelled not in self._ids):
                        continue
                    if len(spelled) < 2:
                        raise LmfError(f"{spelled!r} is a control token of this tokenizer and cannot be plain text.")
                    more.add(begin + start + 1)
            if not more:
                return ids, starts
            cuts |= more


def _chunks(
    renderings: Iterable[tuple[str, list[_Part]]],
) -> Iterator[tuple[list[tuple[str, list[_Part]]], dict[_Text, None]]]:
    """Yield some renderings at a time, and what texts they have."""
    chunk: list[tuple[str, list[_Part]]] = []
    texts: dict[_Text, None] = {}
    size = 0
    for rendering in renderings:
        chunk.append(rendering)
        for part in rendering[1]:
            if isinstance(part, _Text):
                texts[part] = None
                size += len(part.text)
        if size >= CHUNK:
            yield chunk, texts
            chunk, texts, size = [], {}, 0
    if chunk:
        yield chunk, texts


def _joined(
    renderings: Iterable[tuple[str, list[_Part]]], known: Mapping[_Text, tuple[list[int], int]]
) -> Iterator[Example]:
    """Make an example of each rendering; ``known`` is what ``_encode_texts`` returns."""
    for where, parts in renderings:
        ids: list[int] = []
        labels: list[int] = []
        weighted = False
        for part in parts:
            if isinstance(part, _Fixed):
                found = part.ids
                labels += part.labels
            else:
                found, trained = known[part]
                if not part.weight:
                    trained = 0
                labels += found[:trained]
                labels += [IGNORED] * (len(found) - trained)
            ids += found
            weighted = weighted or part.weight not in (0, 1)
        yield Example(ids, labels, where, _weights(parts, known) if weighted else None)


def _weights(parts: Iterable[_Part], known: Mapping[_Text, tuple[list[int], int]]) -> list[float]:
    """Return the weight of each token."""
    weights: list[float] = []
    for part in parts:
        weights += [part.weight] * len(part.ids if isinstance(part, _Fixed) else known[part][0])
    return weights


def _counted(conversation: Conversation, loss_on: Literal["last", "all"]) -> Conversation:
    """Return a conversation of which only the last reply counts, or every one."""
    replies = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    changed, weight = (frozenset(replies[:-1]), 0.0) if loss_on == "last" else (frozenset(replies), 1.0)
    messages = [replace(m, weight=weight) if i in changed else m for i, m in enumerate(conversation.messages)]
    return replace(conversation, messages=tuple(messages))


def _until_cut(pieces: Sequence[Piece]) -> list[Piece]:
    """Return what stands in a rendering before the last cut mark of its replies."""
    for i, piece in reversed(list(enumerate(pieces))):
        at = piece.text.rfind(_CUT) if piece.trained else -1
        if at >= 0:
            return [*pieces[:i], piece._replace(text=piece.text[:at])]
    raise DataError("the template does not write the beginning of the reply as it stands.")
