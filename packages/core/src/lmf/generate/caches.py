"""Forward passes of several texts that grow, each with the keys and values of what it has so far.

A model that can be packed takes the new tokens of all texts in one row, without padding: attention reads each text's
own cache. Others take one text at a time, with the cache that transformers makes for them, or with none where that
one does not give the model's own logits. Which it is, is tried when a model is opened.

Shapes: H heads of keys, n new tokens, D the size of a head, V tokens that the model knows.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..models import inner
from ..training import packing
from ..training.angles import apart, by_length

ROOM = 64  # tokens that a cache has room for at first; it doubles when it is full


class State(Protocol):
    """What a model keeps of a text.

    Attributes:
        length: Tokens that it has read.
    """

    length: int

    def fork(self) -> State:
        """Return a copy, to go on in two ways."""
        ...

    def crop(self, length: int) -> None:
        """Forget all tokens from here on."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """What a forward pass does for one text.

    Attributes:
        state: What was read of it.
        ids: What is to be read now, at least one token.
        kept: How many of the last of these have their logits returned.
    """

    state: Any
    ids: Sequence[int]
    kept: int


class Runner(Protocol):
    """Runs a model on parts of texts.

    Attributes:
        crops: Whether its states can forget, as speculative decoding needs it.
    """

    crops: bool

    def begin(self) -> Any:
        """Return the state of a text of which nothing was read."""
        ...

    def forward(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        """Read on in each text. Returns the logits of what is kept, (kept, V) for each part."""
        ...


class Cache:
    """Keys and values of one text in every layer."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, list[torch.Tensor]] = {}  # keys and values, (1, H, room, D)

    def extend(self, layer: int, *new: torch.Tensor) -> list[torch.Tensor]:
        """Add keys and values of new tokens, (1, H, n, D) each, and return all: (1, H, length + n, D).

        The length is that of all layers and changes when the last of them has been extended.
        """
        end = self.length + new[0].shape[2]
        kept = self._layers.get(layer)
        if kept is None or kept[0].shape[2] < end:
            room = max(ROOM, 2 ** (end - 1).bit_length())
            grown = [x.new_empty(*x.shape[:2], room, x.shape[3]) for x in new]
            for old, larger in zip(kept or (), grown, strict=False):
                larger[:, :, : self.length] = old[:, :, : self.length]
            kept = self._layers[layer] = grown
        for all, some in zip(kept, new, strict=True):
            all[:, :, self.length : end] = some
        return [x[:, :, :end] for x in kept]

    def read(self, layer: int) -> list[torch.Tensor]:
        """Return the keys and values of all tokens, (1, H, length, D) each."""
        return [x[:, :, : self.length] for x in self._layers[layer]]

    def fork(self) -> Cache:
        other = Cache()
        other.length = self.length
        other._layers = {number: [x.clone() for x in kept] for number, kept in self._layers.items()}
        return other

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)


class Stem:
    """What several texts begin with, read in the same forward pass as they; nothing of it is kept after that.

    Args:
        root: What was read of it before; None for nothing.
    """

    def __init__(self, root: Cache | None = None):
        self.root = root
        self.length = root.length if root else 0
        self.now: list[torch.Tensor] = []  # keys and values in the layer that is computed, (1, H, n, D)

    def extend(self, layer: int, *new: torch.Tensor) -> list[torch.Tensor]:
        """As ``Cache.extend``."""
        before = self.root.read(layer) if self.root else None
        self.now = [torch.cat(pair, 2) for pair in zip(before, new, strict=True)] if before else list(new)
        return self.now


class Branch:
    """How one of several texts goes on from what all begin with.

    Args:
        stem: What they begin with; of a ``Stem``, the part that reads it stands before this one's.
        length: The tokens of it.
    """

    def __init__(self, stem: Stem | Cache, length: int):
        self.stem, self.length = stem, length

    def extend(self, layer: int, *new: torch.Tensor) -> list[torch.Tensor]:
        """As ``Cache.extend``."""
        before = self.stem.now if isinstance(self.stem, Stem) else self.stem.read(layer)
        return [torch.cat(pair, 2) for pair in zip(before, new, strict=True)]


class Packed:
    """Runs a model on all texts at once."""

    def __init__(self, model: nn.Module):
        self.model: Any = model
        self.device = next(model.parameters()).device
        # in a row of parts that begin anywhere, the angles of a text would depend on the others
        self.alone = by_length(inner(model).config)
        if self.alone:
            apart(model)
        self.crops = not self.alone  # what was guessed, too, would decide on the angles of what is kept

    def begin(self) -> Cache:
        return Cache()

    def forward(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        if self.alone and len(parts) > 1:
            return [logits for part in parts for logits in self.forward([part])]
        inputs, index = self.inputs(parts)
        logits = self.model(**inputs, logits_to_keep=index).logits[0]
        self.advance(parts)
        return list(logits.split([part.kept for part in parts]))

    def inputs(self, parts: Sequence[Part]) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the arguments of the model that make it read on in each text, and the places of what is kept."""
        lengths = [len(part.ids) for part in parts]
        bounds = tuple(itertools.accumulate(lengths, initial=0))
        ids = [id for part in parts for id in part.ids]
        positions = [part.state.length + i for part in parts for i in range(len(part.ids))]
        index = [end - back for part, end in zip(parts, bounds[1:], strict=True) for back in range(part.kept, 0, -1)]
        inputs = {
            "input_ids": torch.tensor([ids], device=self.device),
            "position_ids": torch.tensor([positions], device=self.device),
            "bounds": bounds,
            "caches": [part.state for part in parts],
            "use_cache": False,
        }
        return inputs, torch.tensor(index, dtype=torch.long, device=self.device)

    @staticmethod
    def advance(parts: Sequence[Part]) -> None:
        """Note that the texts were read on."""
        for part in parts:
            part.state.length += len(part.ids)


class _Held:
    """The cache that transformers makes for a text."""

    def __init__(self, cache: Any):
        self.length, self.cache = 0, cache

    def fork(self) -> _Held:
        return copy.deepcopy(self)

    def crop(self, length: int) -> None:
        raise NotImplementedError("a cache of transformers may not be able to forget")


class _Apart:
    """Runs a model on one text after the other."""

    def __init__(self, model: nn.Module):
        self.model: Any = model
        self.device = next(model.parameters()).device

    def forward(self, parts: Sequence[Part]) -> list[torch.Tensor]:
        return [self._one(part) for part in parts]

    def _one(self, part: Part) -> torch.Tensor:
        raise NotImplementedError


class OneByOne(_Apart):
    """Runs a model on one text after the other, with the cache of transformers.

    Args:
        model: The model.
        single: Have it read one token at a time after the first part of a text, as recurrent models may need it.
    """

    crops = False

    def __init__(self, model: nn.Module, single: bool = False):
        from transformers import DynamicCache

        super().__init__(model)
        self.make = lambda: DynamicCache(config=inner(model).config)
        self.single = single
        self.name = "cache_params" if "cache_params" in _arguments(model) else "past_key_values"

    def begin(self) -> _Held:
        return _Held(self.make())

    def _one(self, part: Part) -> torch.Tensor:
        if self.single and part.state.length and len(part.ids) > 1:
            rows = [self._one(Part(part.state, [id], 1)) for id in part.ids]
            return torch.cat(rows)[len(rows) - part.kept :]
        ids = torch.tensor([part.ids], device=self.device)
        out = self.model(input_ids=ids, use_cache=True, **{self.name: part.state.cache})
        part.state.length += len(part.ids)
        return out.logits[0, len(part.ids) - part.kept :]


class _Ids:
    """The tokens of a text."""

    def __init__(self, ids: Sequence[int] = ()):
        self.ids = list(ids)

    @property
    def length(self) -> int:
        return len(self.ids)

    def fork(self) -> _Ids:
        return _Ids(self.ids)

    def crop(self, length: int) -> None:
        del self.ids[length:]


class Anew(_Apart):
    """Runs a model on a whole text each time: right for every model, and slow."""

    crops = True

    def begin(self) -> _Ids:
        return _Ids()

    def _one(self, part: Part) -> torch.Tensor:
        ids = part.state.ids
        ids += part.ids
        logits = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0]
        return logits[len(ids) - part.kept :]


def read_root(runner: Runner, root: Sequence[int], chunk: int) -> Any:
    """Return a state that has read what many texts begin with, so many tokens at a time; None of nothing."""
    state = runner.begin() if root else None
    for at in range(0, len(root), chunk):
        runner.forward([Part(state, root[at : at + chunk], 0)])
    return state


@contextlib.contextmanager
def reading(model: nn.Module) -> Iterator[Runner]:
    """Give what runs a model that is only to be read in the block; afterwards the model is as it was before."""
    base = inner(model)
    training, attention = model.training, base.config._attn_implementation
    try:
        yield runner_for(model.eval())
    finally:
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)
        model.train(training)


def runner_for(model: nn.Module) -> Runner:
    """Return what runs a model in evaluation mode: the fastest that gives the model's own logits.

    A model that can be packed has its attention exchanged for ours.
    """
    base: Any = inner(model)
    usual = base.config._attn_implementation
    if usual.startswith(packing.ATTENTION):  # in the middle of training
        usual = _own_attention(base)
    with torch.no_grad():
        ids = [number % base.config.get_text_config().vocab_size for number in range(1, 8)]
        anew = Anew(model)
        expected = anew.forward([Part(anew.begin(), ids, len(ids))])[0]
        if packing.packable(base):
            base.set_attn_implementation(packing.ATTENTION)
            packed = Packed(model)
            if _gives(packed, ids, expected):
                return packed
            base.set_attn_implementation(usual)
        for single in (False, True):
            one = OneByOne(model, single)
            if _gives(one, ids, expected):
                return one
        return anew


def _own_attention(model: Any) -> str:
    """Give a model back the attention of transformers: the faster, where it has it. Returns its name."""
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # as Gemma 2, whose scores are bounded
        model.set_attn_implementation("eager")
    return model.config._attn_implementation


def token_bytes(model: nn.Module) -> int:
    """Return the bytes that the keys and values of a token take in all layers of a model; 1 if it has none."""
    config = inner(model).config.get_text_config()
    queries = getattr(config, "num_attention_heads", None) or 0
    heads = getattr(config, "num_key_value_heads", None) or queries
    size = getattr(config, "head_dim", None) or (config.hidden_size // queries if queries else 0)
    return max(1, 2 * config.num_hidden_layers * heads * size * next(model.parameters()).element_size())


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return with how many of the same tokens two texts begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _gives(runner: Runner, ids: Sequence[int], expected: torch.Tensor) -> bool:
    """Tell whether a runner that reads two texts in parts, one after the other, gives the logits of them whole."""
    try:
        states = [runner.begin(), runner.begin()]
        rows: list[list[torch.Tensor]] = [[], []]
        for start, end in ((0, 3), (3, 4), (4, len(ids))):
            parts = [Part(state, ids[start:end], end - start) for state in states]
            for row, logits in zip(rows, runner.forward(parts), strict=True):
                row.append(logits)
    except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError, KeyError, IndexError):
        return False  # this model does not take such a cache
    allowed = (1e-4 if expected.dtype == torch.float32 else 2e-2) * expected.abs().max()
    return all(bool((torch.cat(row) - expected).abs().max() <= allowed) for row in rows)


def _arguments(model: nn.Module) -> set[str]:
    return set(inspect.signature(inner(model).forward).parameters)
