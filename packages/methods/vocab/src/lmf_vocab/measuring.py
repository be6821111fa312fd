"""What a vocabulary is worth on texts: tokens, loss per byte, and time to write."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from lmf.encoding.encoder import Encoder
from lmf.evaluate.asking import bare, opening
from lmf.evaluate.likelihood import Scorer, Text, batches
from lmf.evaluate.running import default_tokens
from lmf.generate.caches import Part, Runner, runner_for
from lmf.generate.opening import Chatter

WINDOW = 1024  # tokens of a text that are read at a time
MEASURED = 100_000  # bytes of text whose loss is measured
WRITTEN = 64  # tokens of the base that are written to take the time


@dataclass(frozen=True, slots=True)
class Count:
    """How texts are cut.

    Attributes:
        tokens: How many tokens they have.
        words: How many words: parts between white space.
        bytes: How many bytes in UTF-8.
        covered: Bytes that stand in new pieces.
    """

    tokens: int
    words: int
    bytes: int
    covered: int


def count(tokenizer: Any, texts: Sequence[str], first: int | None = None) -> Count:
    """Count the tokens of texts.

    Args:
        tokenizer: A fast tokenizer of transformers.
        texts: The texts.
        first: The first id of a new piece; None for none.
    """
    tokens = covered = 0
    for text in texts:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=first is not None)
        tokens += len(found["input_ids"])
        if first is not None:
            at = 0  # pieces of one character have the same offsets, and it counts once
            for id, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
                if id >= first and end > at:
                    covered += len(text[max(start, at) : end].encode())
                at = max(at, end)
    whole = sum(len(text.encode()) for text in texts)
    return Count(tokens, sum(len(re.findall(r"\S+", text)) for text in texts), whole, covered)


def chatter_of(model: Any, tokenizer: Any) -> Chatter:
    """Return a model of plain text with its tokenizer."""
    return Chatter(model.eval(), tokenizer, Encoder(tokenizer, None))


def loss_per_byte(chatter: Chatter, texts: Sequence[str]) -> float:
    """Return the negative log-likelihood of texts in nats per byte, the first token of each included.

    The figure compares across vocabularies. Each text begins after the token that opens texts, or else ends them, and
    is read in windows of 1024 tokens. Of many texts, the first that have ``MEASURED`` bytes are read.
    """
    sizes = accumulate(len(text.encode()) for text in texts)
    texts = [text for text, size in zip(texts, sizes, strict=True) if size <= MEASURED] or [texts[0][:MEASURED]]
    windows = [window for text in texts for window in _windows(chatter, text)]
    windows.sort(key=lambda window: -len(window.ids))
    scorer, device = Scorer(runner_for(chatter.model)), next(chatter.model.parameters()).device
    total = 0.0
    for some in batches(windows, [len(window.ids) for window in windows], default_tokens(device)):
        total -= sum(sum(scored.logprobs) for (scored,) in scorer.score([[window] for window in some]))
    return total / sum(len(text.encode()) for text in texts)


def _windows(chatter: Chatter, text: str) -> list[Text]:
    ids = bare(chatter, text)
    before = [*opening(chatter), *ids]  # what stands before each token
    starts = range(0, len(ids), WINDOW)
    return [Text((before[at], *ids[at : at + WINDOW]), 1) for at in starts]


@torch.no_grad()
def seconds_to_write(chatter: Chatter, text: str) -> float:
    """Return how long a model takes to write a text, token by token."""
    runner: Runner = runner_for(chatter.model)
    ids = [*opening(chatter), *bare(chatter, text)]
    state = runner.begin()
    runner.forward([Part(state, ids[:1], 1)])
    began = time.perf_counter()
    for id in ids[1:]:
        runner.forward([Part(state, [id], 1)])
    return time.perf_counter() - began


def sped_up(base: Chatter, extended: Chatter, texts: Sequence[str], rounds: int = 3) -> float:
    """Return how many times faster the extended model writes a beginning of the texts than the base."""
    text = str(base.tokenizer.decode(bare(base, "\n".join(texts[:8]))[:WRITTEN])).rstrip("\ufffd")
    both: list[tuple[float, float]] = []
    for _ in range(rounds + 1):  # the first time warms up
        both.append((seconds_to_write(base, text), seconds_to_write(extended, text)))
    before, after = (min(times) for times in zip(*both[1:], strict=True))
    return before / after
