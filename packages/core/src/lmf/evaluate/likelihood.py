"""How likely a model finds texts of which many begin alike: what several begin with is read once.

The choices of a question go on from one prompt, and the prompts of a benchmark from the same examples. So the texts of
a group are a tree of three levels: the root, common to many groups, is read once and kept; the stem, common to the
texts of a group, and what remains of each are read in one row with other groups, without padding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from ..generate.caches import Branch, Cache, Packed, Part, Runner, Stem, read_root, shared
from ..losses import FEWEST, chosen_logprobs, token_logprobs
from ..training.loss import find_head

T = TypeVar("T")
CHUNK = 1024  # tokens of a root at a time
SHORTEST = 16  # tokens from which on a root is worth being kept


@dataclass(frozen=True, slots=True)
class Text:
    """A text of which a part is scored.

    Attributes:
        ids: Its tokens, at least two.
        start: The first token that is scored, at least 1: what stands before it is read only.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that must be read: the last one is only predicted."""
        return self.ids[:-1]


Group = Sequence[Text]


class Scored(NamedTuple):
    """What a model makes of a text.

    Attributes:
        logprobs: The log-probability of each scored token, in nats.
        likeliest: Whether each of them is the likeliest at its place: the model would write this.
    """

    logprobs: list[float]
    likeliest: bool


def tokens_of(group: Group, root: int = 0) -> int:
    """Return how many tokens are read of a group after the root."""
    stem = _common([text.read for text in group])
    return max(0, stem - root) + sum(len(text.read) - max(stem, root) for text in group)


def root_of(groups: Sequence[Group]) -> tuple[int, ...]:
    """Return what all texts of several groups begin with and is nowhere scored, if it is worth being kept."""
    texts = [text for group in groups for text in group]
    if len(groups) < 2:
        return ()
    length = min(_common([text.read for text in texts]), min(text.start for text in texts) - 1)
    return texts[0].ids[:length] if length >= SHORTEST else ()


def batches(items: Sequence[T], sizes: Sequence[int], most: int) -> Iterator[list[T]]:
    """Yield items that are read together, nearly as many tokens each time.

    A short last batch would be computed by other kernels, whose results may differ in the last bit.

    Args:
        items: The items.
        sizes: The tokens of each.
        most: Most tokens at a time, unless a single item has more.
    """
    share = sum(sizes) / max(1, math.ceil(sum(sizes) / most))
    batch: list[T] = []
    tokens = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and (tokens + size / 2 > share or tokens + size > most):
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += size
    if batch:
        yield batch


class Scorer:
    """Scores groups of texts.

    Args:
        runner: Runs the model.

    Attributes:
        root: What the texts to come begin with.
    """

    def __init__(self, runner: Runner):
        self.runner: Any = runner
        self.whole = isinstance(runner, Packed) and runner.alone  # a text's angles depend on its length
        self.packed = isinstance(runner, Packed) and not self.whole
        self.head = find_head(self.runner.model, True) if self.packed else None
        self.root: tuple[int, ...] = ()
        self._state: Any = None

    @torch.no_grad()
    def keep(self, root: Sequence[int]) -> None:
        """Read what the texts to come begin with; it takes the place of an earlier root."""
        self.root = () if self.whole else tuple(root)
        self._state = read_root(self.runner, self.root, CHUNK)

    @torch.no_grad()
    def score(self, groups: Sequence[Group]) -> list[list[Scored]]:
        """Score all texts of some groups; all begin with the root."""
        if self.whole:
            return [[tree.by_text(self._apart(tree))[0] for tree in _each(group)] for group in groups]
        trees = [_tree(group, len(self.root)) for group in groups]
        values = self._together(trees) if self.packed else [self._apart(tree) for tree in trees]
        return [tree.by_text(found) for tree, found in zip(trees, values, strict=True)]

    def _together(self, trees: Sequence[_Tree]) -> list[list[_Value]]:
        """Read all trees in one forward pass. Returns what was found for the targets of each."""
        parts: list[Part] = []
        for tree in trees:
            below: Stem | Cache = self._state or Stem()
            if tree.stem.ids:
                below = Stem(self._state)
                parts.append(Part(below, tree.stem.ids, tree.stem.kept))
            for branch in tree.branches:
                if branch.ids:
                    state = Branch(below, tree.length) if tree.length else Stem()
                    parts.append(Part(state, branch.ids, branch.kept))
        few = FEWEST - sum(len(part.ids) if self.head else part.kept for part in parts)
        if few > 0:
            parts.append(Part(Stem(), trees[0].targets[:1] * few, 0 if self.head else few))
        starts = itertools.accumulate((tree.rows for tree in trees), initial=0)
        rows = [start + row for start, tree in zip(starts, trees, strict=False) for row in tree.where]
        targets = torch.tensor([id for tree in trees for id in tree.targets], device=self.runner.device)
        where = torch.tensor(rows, device=self.runner.device)
        if self.head:
            inputs, index = self.runner.inputs(parts)
            hidden, head = self.head.hidden(inputs)[index[where]], self.head
            weight, bias = head.weight, head.bias
            found = token_logprobs(hidden, weight, targets, bias=bias, scale=head.scale, softcap=head.softcap)
        else:
            found = chosen_logprobs(torch.cat(self.runner.forward(parts))[where].float(), targets)
        values = _values(*found)
        return [list(itertools.islice(values, len(tree.targets))) for tree in trees]

    def _apart(self, tree: _Tree) -> list[_Value]:
        """Read a tree part by part, each branch from a copy of what was read of the stem."""
        state = self._state.fork() if self._state else self.runner.begin()
        logits = []
        if tree.stem.ids:
            logits += self.runner.forward([Part(state, tree.stem.ids, tree.stem.kept)])
        for branch in tree.branches:
            if branch.ids:
                logits += self.runner.forward([Part(state.fork(), branch.ids, branch.kept)])
        rows = torch.cat(logits)
        where, targets = (torch.tensor(x, device=rows.device) for x in (tree.where, tree.targets))
        return list(_values(*chosen_logprobs(rows[where].float(), targets)))


_Value = tuple[float, bool]  # the log-probability of a token, and whether it is the likeliest


def _values(logprobs: torch.Tensor, likeliest: torch.Tensor) -> Iterator[_Value]:
    return zip(logprobs.tolist(), likeliest.tolist(), strict=True)


class _Piece(NamedTuple):
    """Tokens that are read, and how many of the last of them predict something that counts."""

    ids: tuple[int, ...]
    kept: int


@dataclass(frozen=True, slots=True)
class _Tree:
    """A group as it is read.

    Attributes:
        length: Tokens of the root and the stem together.
        stem: What all texts have after the root.
        branches: What each text has after the stem.
        where: For each target, the row that predicts it, among those kept of the stem and then of each branch.
        targets: The scored tokens of all texts, one text after the other.
        counts: How many of them each text has.
    """

    length: int
    stem: _Piece
    branches: tuple[_Piece, ...]
    where: tuple[int, ...]
    targets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return self.stem.kept + sum(branch.kept for branch in self.branches)

    def by_text(self, values: Sequence[_Value]) -> list[Scored]:
        """Return what was found for all targets, text by text."""
        rest = iter(values)
        texts = [list(itertools.islice(rest, count)) for count in self.counts]
        return [Scored([each for each, _ in text], all(best for _, best in text)) for text in texts]


def _tree(group: Group, root: int) -> _Tree:
    end = max(root, _common([text.read for text in group]))  # of the stem
    first = min(end, *(text.start - 1 for text in group))  # the first of its rows that predicts what counts
    stem = _Piece(group[0].ids[root:end], end - first)
    branches, where, counts, row = [], [], [], stem.kept
    for text in group:
        begin = max(end, text.start - 1)
        branch = _Piece(text.read[end:], len(text.read) - begin)
        where += [at - first for at in range(text.start - 1, end)] + list(range(row, row + branch.kept))
        branches.append(branch)
        counts.append(len(text.ids) - text.start)
        row += branch.kept
    targets = tuple(id for text in group for id in text.ids[text.start :])
    return _Tree(end, stem, tuple(branches), tuple(where), targets, tuple(counts))


def _each(group: Group) -> Iterator[_Tree]:
    """Return a tree for each text, which reads it in one part."""
    return (_tree([text], 0) for text in group)


def _common(texts: Sequence[tuple[int, ...]]) -> int:
    """Return with how many of the same tokens all texts begin."""
    return shared(min(texts), max(texts))
