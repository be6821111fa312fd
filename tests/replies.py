"""Models that the tests of replies need, and how far counts are from what is expected of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lmf.generate.caches import Part
from lmf.generate.engine import Engine
from lmf.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class Rule:
    """A model of which the logits after a text are a function of its tokens. It counts its forward passes."""

    crops = True

    def __init__(self, rule: Callable[[list[int]], torch.Tensor], width: int = len(TOKENIZER)):
        self.rule, self.width = rule, width
        self.sizes: list[int] = []  # texts in each pass

    def begin(self) -> Any:
        return _Text([])

    def forward(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        self.sizes.append(len(parts))
        rows = []
        for part in parts:
            before = part.state.ids
            part.state.ids = [*before, *part.ids]
            ends = range(len(part.ids) - part.kept + 1, len(part.ids) + 1)
            kept = [self.rule([*before, *part.ids[:end]]) for end in ends]
            rows.append(torch.stack(kept) if kept else torch.zeros(0, self.width))
        return rows


class _Text:
    def __init__(self, ids: list[int]):
        self.ids = ids

    @property
    def length(self) -> int:
        return len(self.ids)

    def fork(self) -> "_Text":
        return _Text(list(self.ids))

    def crop(self, length: int) -> None:
        self.ids = self.ids[:length]


def script(text: str, prompt: int) -> Rule:
    """Return a model that writes a text after a prompt of so many tokens."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]

    def rule(read: list[int]) -> torch.Tensor:
        at = len(read) - prompt
        return torch.nn.functional.one_hot(torch.tensor(ids[at] if at < len(ids) else 0), len(TOKENIZER)).float()

    return Rule(rule)


def engine(rule: Rule, ends: Sequence[int] = (), context: int = 1000, **options: Any) -> Engine:
    return Engine(rule, TOKENIZER, ends, context, **options)


def chance_of(counts: Sequence[int], expected: Sequence[float]) -> float:
    """Return how likely counts are to be so far from what is expected, by Pearson's chi-square test."""
    distance = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(distance / 2, dtype=torch.float64)))
