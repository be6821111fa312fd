"""Speculative decoding (arXiv:2211.17192): cheap guesses at the next tokens, and the rule that keeps the distribution.

A draft is checked by the model in one forward pass. A guess x, drawn from q where the model's own distribution is p,
is kept with probability min(1, p(x) / q(x)); the first that is not is replaced by a draw from max(0, p - q), scaled.
What is written has the distribution p, whatever q is; at temperature 0 it is the same text.

Shapes: V is the number of tokens that the model knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..settings import Sampling
from .caches import Part, Runner, shared
from .sampling import distribution, draw


@dataclass(frozen=True, slots=True)
class Draft:
    """Guesses at the next tokens.

    Attributes:
        ids: The guesses.
        chances: For each, the distribution it was drawn from, (V,); None where it was not drawn.
    """

    ids: list[int]
    chances: list[torch.Tensor | None]


NOTHING = Draft([], [])


class Drafter(Protocol):
    """Makes drafts for one text."""

    def draft(self, prompt: Sequence[int], written: Sequence[int], most: int) -> Draft:
        """Return at most so many guesses at what comes after a prompt and what is written."""
        ...


Drafting = Callable[[Sampling, random.Random], Drafter]  # makes what drafts the tokens of one reply


class Lookup:
    """Guesses that what followed the same tokens earlier in the text follows again (prompt lookup).

    Args:
        longest: The most tokens that are looked for; shorter ends of the text are tried after them.
        shortest: The fewest; what follows a single token hardly ever follows it again.
    """

    def __init__(self, longest: int = 3, shortest: int = 2):
        self.longest, self.shortest = longest, shortest

    def draft(self, prompt: Sequence[int], written: Sequence[int], most: int) -> Draft:
        ids = [*prompt, *written]
        for size in range(min(self.longest, len(ids) - 1), self.shortest - 1, -1):
            end = ids[-size:]
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start : start + size] == end:
                    found = ids[start + size : start + size + most]
                    return Draft(found, [None] * len(found))
        return NOTHING


class Smaller:
    """Lets a smaller model with the same tokens write ahead.

    Args:
        runner: Runs the smaller model.
        sampling: How the reply is drawn.
        chance: Random numbers.
        width: V of the model that it drafts for; some models have more rows than their tokenizer has tokens.
    """

    def __init__(self, runner: Runner, sampling: Sampling, chance: random.Random, width: int):
        self.runner, self.sampling, self.chance, self.width = runner, sampling, chance, width
        self.state: Any = runner.begin()
        self.read: list[int] = []  # what the state has read

    def draft(self, prompt: Sequence[int], written: Sequence[int], most: int) -> Draft:
        ids = [*prompt, *written]
        self.state.crop(min(shared(self.read, ids), len(ids) - 1))
        made = Draft([], [])
        for _ in range(most):
            known = [*ids, *made.ids]
            (logits,) = self.runner.forward([Part(self.state, known[self.state.length :], 1)])
            own = logits[0, : self.width]
            own = F.pad(own, (0, self.width - len(own)), value=-torch.inf)
            chances = distribution(own, self.sampling, prompt, [*written, *made.ids])
            made.ids.append(draw(chances, self.chance))
            made.chances.append(chances)
        self.read = [*ids, *made.ids][: self.state.length]
        return made


def accepted(draft: Draft, target: Callable[[Sequence[int]], torch.Tensor], chance: random.Random) -> list[int]:
    """Return the tokens that come next: the guesses that are kept, and one more.

    Args:
        draft: The guesses.
        target: Returns the distribution of the token after some guesses, (V,).
        chance: Random numbers.
    """
    kept: list[int] = []
    for guess, proposed in zip(draft.ids, draft.chances, strict=True):
        own = target(kept)
        # a guess that was not drawn is one of probability 1
        likely = 1.0 if proposed is None else float(proposed[guess])
        if chance.random() * likely >= float(own[guess]):
            rest = own.clone()
            if proposed is None:
                rest[guess] = 0.0
            else:
                rest = (rest - proposed.to(rest)).clamp_(min=0.0)
            return [*kept, draw(rest, chance)]
        kept.append(guess)
    return [*kept, draw(target(kept), chance)]
