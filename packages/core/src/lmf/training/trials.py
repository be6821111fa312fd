"""What a kernel is tried on before a run: the sizes and options of the model, in random numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import LmfError
from ..models import logit_options

Trial = tuple[tuple[Any, ...], dict[str, Any]]  # arguments by place and by name

ROWS = 7  # no multiple of any block
LONG = 300  # those of attention on a GPU: several blocks
WORDS = 5000  # of a vocabulary, at most
DROPOUT = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")  # in configurations


def trials(part: str, config: Any, dtype: torch.dtype, device: torch.device, everything: bool = False) -> list[Trial]:
    """Return arguments of a part: random, and always the same.

    Args:
        part: The name of the part.
        config: The configuration of the model.
        dtype: Precision of the arguments.
        device: Where they are.
        everything: Try all that the definition allows, not only what the model asks for. The first is then plain.

    Returns:
        Arguments by place and by name; none if the model has no such sizes, and so no such part.

    Raises:
        LmfError: The model has such a part, and asks what no kernel computes.
    """
    make = _Trials(config.get_text_config(), dtype, device, everything)
    return getattr(make, f"of_{part}")()


@dataclass(slots=True)
class _Trials:
    config: Any
    dtype: torch.dtype
    device: torch.device
    everything: bool
    chance: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def random(self, *shape: int, learned: bool = True) -> torch.Tensor:
        values = torch.randn(*shape, generator=self.chance).to(self.device, self.dtype)
        return values.requires_grad_(learned)

    def of_rms_norm(self) -> list[Trial]:
        width = self.number("hidden_size")
        if not width:
            return []
        given = self.random(ROWS, width), self.random(width)
        return [((*given, eps), {"offset": offset}) for eps, offset in ((1e-6, False), (1e-2, True))]

    def of_add_rms_norm(self) -> list[Trial]:
        found: list[Trial] = []
        for (x, weight, eps), more in self.of_rms_norm():
            found.append(((x, x.detach().flip(0).requires_grad_(), weight, eps), more))
        return found

    def of_glu(self) -> list[Trial]:
        width = self.number("intermediate_size")
        if not width:
            return []
        given = self.random(ROWS, width), self.random(ROWS, width)
        return [((*given, activation), {}) for activation in ("silu", "gelu")]

    def of_rotary(self) -> list[Trial]:
        heads, shared, size = self.heads()
        if not (heads and shared and size):
            return []
        found: list[Trial] = []
        rope = getattr(self.config, "rope_parameters", None) or {}
        share = rope.get("partial_rotary_factor") or getattr(self.config, "partial_rotary_factor", None) or 1
        for rows, width in [(1, int(size * share))] + self.everything * [(2, size // 4 * 2)]:
            half = self.random(rows, ROWS, width // 2, learned=False)
            angles = half.repeat(1, 1, 2)  # halves turn alike, as in models
            q, k = self.random(rows, heads, ROWS, size), self.random(rows, shared, ROWS, size)
            found.append(((q, k, angles.cos(), angles.sin()), {}))
        return found

    def of_linear_cross_entropy(self) -> list[Trial]:
        width, words = self.number("hidden_size"), self.number("vocab_size")
        if not (width and words):
            return []
        words = min(words, WORDS)
        targets = torch.randint(words, (ROWS,), generator=self.chance).to(self.device)
        given = self.random(ROWS, width), self.random(words, width), targets
        scale, softcap = logit_options(self.config)
        asked = {"scale": scale, "softcap": softcap}
        if not self.everything:
            return [(given, asked)]
        one_each = {"bias": self.random(words, learned=False), "weights": self.random(ROWS, learned=False).abs()}
        one_each |= {"scale": 0.5, "softcap": 3.0, "smoothing": 0.1, "z_loss": 0.01}
        return [(given, {}), *((given, {name: value}) for name, value in one_each.items())]

    def of_attention(self) -> list[Trial]:
        heads, shared, size = self.heads()
        if not (heads and shared and size):
            return []
        if dropped := next((name for name in DROPOUT if getattr(self.config, name, None)), None):
            raise LmfError(f"{dropped} is {getattr(self.config, dropped)} in this model, and no kernel drops weights")
        if getattr(self.config, "v_head_dim", None) not in (None, size):
            raise LmfError("the heads of values are of another size than those of queries in this model")
        rows = ROWS if self.device.type == "cpu" else LONG
        given = (*(self.random(rows, count, size) for count in (heads, shared, shared)), (0, 3, rows))
        if self.everything:
            options: list[dict[str, Any]] = [{}, {"window": rows // 3}, {"softcap": 3.0}, {"scale": 0.3}]
            return [(given, each) for each in options]
        softcap, window = (getattr(self.config, name, None) for name in ("attn_logit_softcapping", "sliding_window"))
        windows = [None, min(window, rows // 3)] if window else [None]  # some models have layers of both kinds
        return [(given, {"softcap": softcap, "window": each}) for each in windows]

    def heads(self) -> tuple[int, int, int]:
        """Return the heads of queries, those of keys, and their size; 0 for what the model has not."""
        heads, width = self.number("num_attention_heads"), self.number("hidden_size")
        size = self.number("head_dim") or (width // heads if heads else 0)
        return heads, self.number("num_key_value_heads") or heads, size

    def number(self, name: str) -> int:
        """Return a size of the model, the largest where layers differ, or 0."""
        found = getattr(self.config, name, None)
        if isinstance(found, (list, tuple)):
            found = max((each for each in found if isinstance(each, int)), default=0)
        return found if isinstance(found, int) else 0
