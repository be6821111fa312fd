"""What is measured: the parts of models in their sizes, and the least that each must move and compute.

Shapes: N is the number of tokens, d the width of the model, H heads of queries, K of keys and values, D the size of a
head, V the vocabulary. What is moved is in elements, each tensor read or written once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lmf import ConfigError

EPS = 1e-5
Made = tuple[tuple[Any, ...], dict[str, Any]]  # arguments by place and by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a model.

    Attributes:
        name: What tables call it.
        hidden: d.
        inside: Width between the two products of a gated unit.
        heads: H.
        keys: K.
        size: D.
        vocabulary: V.
        window: Number of positions that a token sees; None for all.
        softcap: Bound of the scores of attention, if it has one.
    """

    name: str
    hidden: int
    inside: int
    heads: int
    keys: int
    size: int
    vocabulary: int
    window: int | None = None
    softcap: float | None = None


MODELS = {
    sizes.name: sizes
    for sizes in (
        Sizes(name="Llama-2-7B", hidden=4096, inside=11008, heads=32, keys=32, size=128, vocabulary=32000),
        Sizes(name="Llama-3-8B", hidden=4096, inside=14336, heads=32, keys=8, size=128, vocabulary=128256),
        Sizes(name="Qwen2.5-7B", hidden=3584, inside=18944, heads=28, keys=4, size=128, vocabulary=152064),
    )
}


def sizes_of(name: str, config: Any) -> Sizes:
    """Return the sizes in the configuration of a model of transformers.

    Raises:
        ConfigError: It has none of these, or not one for all layers.
    """
    text = config.get_text_config()
    found = {}
    for each in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        found[each] = getattr(text, each, None)
        if not isinstance(found[each], int):
            raise ConfigError(f"--model {name}: its configuration has no {each} that is one for all layers.")
    hidden, inside, heads, words = found.values()
    return Sizes(
        name=name,
        hidden=hidden,
        inside=inside,
        heads=heads,
        keys=getattr(text, "num_key_value_heads", None) or heads,
        size=getattr(text, "head_dim", None) or hidden // heads,
        vocabulary=words,
        window=getattr(text, "sliding_window", None),
        softcap=getattr(text, "attn_logit_softcapping", None),
    )


@dataclass(slots=True)
class Random:
    """Makes fresh numbers.

    Attributes:
        device: Where they are.
        dtype: Their precision.
        chance: Where they come from.
    """

    device: torch.device
    dtype: torch.dtype
    chance: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.chance = torch.Generator(self.device).manual_seed(0)

    def __call__(self, *shape: int, learned: bool = True) -> torch.Tensor:
        values = torch.randn(*shape, generator=self.chance, device=self.device, dtype=torch.float32)
        return values.to(self.dtype).requires_grad_(learned)

    def ids(self, count: int, below: int) -> torch.Tensor:
        return torch.randint(below, (count,), generator=self.chance, device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A part of a model in some size.

    Attributes:
        part: The name of the part, see ``lmf.Kernel``.
        name: What the tables call it.
        make: Returns arguments of the part for at most so many tokens.
        formula: The part by its formula, as models of transformers have it.
        moved: Elements that the forward and the backward pass must move.
        flops: What they must compute.
        eager: Whether the formula is measured, too; that of attention would write all scores.
        together: Whether gradients are made in the forward pass, so that only both passes together tell.
    """

    part: str
    name: str
    make: Callable[[Random, int], Made]
    formula: Callable[..., Any]
    moved: tuple[float, float]
    flops: tuple[float, float] = (0.0, 0.0)
    eager: bool = True
    together: bool = False


def parts(sizes: Sizes, tokens: int) -> list[Case]:
    """Return the parts of a model without its attention."""
    d, inside, words = sizes.hidden, sizes.inside, sizes.vocabulary
    turned = (sizes.heads + sizes.keys) * sizes.size * tokens
    product = 2.0 * tokens * words * d
    head, states = float(words * d), float(tokens * d)

    def rms_norm(random: Random, most: int) -> Made:
        return (random(min(tokens, most), d), random(d), EPS), {}

    def add_rms_norm(random: Random, most: int) -> Made:
        rows = min(tokens, most)
        return (random(rows, d), random(rows, d), random(d), EPS), {}

    def glu(random: Random, most: int) -> Made:
        rows = min(tokens, most)
        return (random(rows, inside), random(rows, inside), "silu"), {}

    def rotary(random: Random, most: int) -> Made:
        rows = min(tokens, most)
        angles = random(1, rows, sizes.size // 2, learned=False).repeat(1, 1, 2)
        q, k = (random(1, rows, heads, sizes.size).transpose(1, 2) for heads in (sizes.heads, sizes.keys))
        return (q, k, angles.cos(), angles.sin()), {}

    def loss(random: Random, most: int, learned: bool) -> Made:
        rows = min(tokens, most)
        weight = (random(words, d, learned=False) * d**-0.5).requires_grad_(learned)
        options = {"chunk": rows // 3 * words} if rows < tokens else {}  # several chunks, also of few rows
        return (random(rows, d), weight, random.ids(rows, words)), options

    def case(part: str, make: Callable[[Random, int], Made], **more: Any) -> Case:
        return Case(part=part, name=more.pop("name", sizes.name), make=make, formula=FORMULAS[part], **more)

    frozen = f"{sizes.name}, frozen head"
    return [
        case("rms_norm", rms_norm, moved=(2 * states, 3 * states)),
        case("add_rms_norm", add_rms_norm, moved=(4 * states, 4 * states)),
        case("glu", glu, moved=(3.0 * inside * tokens, 5.0 * inside * tokens)),
        case("rotary", rotary, moved=(2.0 * turned, 2.0 * turned)),
        case(
            "linear_cross_entropy",
            partial(loss, learned=True),
            moved=(states + head, states + head),
            flops=(product, 2 * product),
            together=True,
        ),
        case(
            "linear_cross_entropy",
            partial(loss, learned=False),
            name=frozen,
            moved=(states + head, states),
            flops=(product, product),
            together=True,
        ),
    ]


def attention(sizes: Sizes, lengths: Sequence[int], what: str) -> Case:
    """Return the attention of a model over documents of these lengths; ``what`` is how they are called."""
    heads, keys, size, window = sizes.heads, sizes.keys, sizes.size, sizes.window
    tokens = sum(lengths)

    def make(random: Random, most: int) -> Made:
        bounds = [0, *(end for end in itertools.accumulate(lengths) if end <= most)]
        if len(bounds) == 1:
            bounds.append(most)
        q, k, v = (random(bounds[-1], count, size) for count in (heads, keys, keys))
        seen = min(window, bounds[-1] // 3) if window and most < tokens else window  # one that hides something
        return (q, k, v, tuple(bounds)), {"window": seen, "softcap": sizes.softcap}

    pairs = sum(_pairs(length, window) for length in lengths)
    return Case(
        part="attention",
        name=f"D {size}, {heads}/{keys} heads, {what}",
        make=make,
        formula=FORMULAS["attention"],
        moved=((2.0 * heads + 2 * keys) * size * tokens, (4.0 * heads + 4 * keys) * size * tokens),
        flops=(4.0 * pairs * size * heads, 10.0 * pairs * size * heads),
        eager=False,
    )


def documents(mean: int, tokens: int) -> list[int]:
    """Return lengths around a mean that spread as those of instructions do, and sum to a number of tokens."""
    chance = torch.Generator().manual_seed(0)
    lengths = torch.empty(4 * tokens // mean + 4).log_normal_(0.0, 0.6, generator=chance)
    lengths = (lengths / lengths.mean() * mean).clamp(min=1).long().tolist()
    ends = [end for end in itertools.accumulate(lengths) if end < tokens]
    return [end - start for start, end in itertools.pairwise([0, *ends, tokens])]


def _pairs(length: int, window: int | None) -> int:
    """Return how many pairs of a token and one that it sees there are in a document."""
    seen = min(length, window or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


# The formulas


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = residual + x
    return _rms_norm(total, weight, eps), total


def _glu(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    return F.silu(gate) * up


def _rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def turned(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    return turned(q), turned(k)


def _loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: Sequence[int],
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    found = []
    for start, end in itertools.pairwise(bounds):
        queries, keys, values = (x[start:end].transpose(0, 1) for x in (q, k, v))
        keys, values = (x.repeat_interleave(len(queries) // len(keys), 0) for x in (keys, values))
        scores = queries @ keys.mT * q.shape[-1] ** -0.5
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        ahead = torch.arange(end - start, device=q.device)
        ahead = ahead[None, :] - ahead[:, None]
        hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
        found.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(found)


FORMULAS: dict[str, Callable[..., Any]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "glu": _glu,
    "rotary": _rotary,
    "linear_cross_entropy": _loss,
    "attention": _attention,
}
