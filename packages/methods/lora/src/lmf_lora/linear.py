"""Low-rank updates and trained rows with less work and memory than peft's own forward pass, and the same result.

Shapes: N tokens, r the rank; a layer has W (out, in), A (r, in), B (out, r) and the scale s; embeddings have V rows, of
which R are trained.

peft adds up ``base(x) + B(A(x)) * s``, three tensors of (N, out), and takes x to the precision of A for every layer
anew. Here the update is added in place, and the backward pass needs x as it came, which the layers of a block
share, and A(x).

Of embeddings with trained rows peft makes a copy with those rows in it, (V, d), and its gradient is as large. Here both
matrices are looked up. A head with trained rows does need the copy, but with it the loss can do without the logits of
a whole batch, as it can with other heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lmf.losses import autocast_dtype
from lmf.training.loss import take_for_head
from peft.tuners.lora import Linear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn


class UpdatedLinear(Linear):
    """peft's layer, computed in one function where nothing but a plain update is asked of it."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not self._plain():
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base = self.get_base_layer()
        compute = autocast_dtype(x)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _Update.apply(x.to(compute), base.weight, base.bias, a, b, self.scaling[name])  # pyright: ignore

    def _plain(self) -> bool:
        names, base = self.active_adapters, self.get_base_layer()
        return (
            len(names) == 1
            and names[0] in self.lora_A
            and not (self.merged or self.disable_adapters or self.lora_bias[names[0]])
            and names[0] not in self.lora_variant
            and not (self.training and getattr(self.lora_dropout[names[0]], "p", 0))
            and not any(parameter.requires_grad for parameter in base.parameters())
        )


class UpdatedEmbedding(TrainableTokensLayer):
    """peft's embeddings with trained rows, computed from both where the rows of one adapter are trained.

    Attributes:
        known: The adapter whose rows ``places`` has.
        places: Which of the trained rows each token has, or -1; (V,).
    """

    known: str
    places: torch.Tensor

    def prepare(self) -> None:
        """Note where the rows are, after the class was given to a layer of peft with one adapter."""
        ((self.known, tokens),) = self.token_indices.items()
        base: Any = self.get_base_layer()
        places = torch.full((base.num_embeddings,), -1)
        places[tokens] = torch.arange(len(tokens))
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not self._plain():
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        place, result = self.places[x], base(x)
        rows = F.embedding(place.clamp(min=0), self.trainable_tokens_delta[self.known]).to(result.dtype)
        scale = self._get_embed_scale()
        rows = rows if scale is None else rows * scale.to(rows.dtype)
        return torch.where((place >= 0)[..., None], rows, result)

    def _plain(self) -> bool:
        base = self.get_base_layer()
        return (
            list(self.active_adapters) == [self.known]
            and not (self.merged or self.disable_adapters)
            and base.max_norm is None
            and base.padding_idx not in self.token_indices[self.known]
            and not any(parameter.requires_grad for parameter in base.parameters())
        )


class UpdatedHead(TrainableTokensWrapper):
    """peft's output head with trained rows; ``weight`` is the matrix with them in it, and it has no bias."""

    bias = None


take_for_head(UpdatedHead)


def lean(model: nn.Module) -> None:
    """Let all plain layers with an update, and embeddings and heads with trained rows, compute them in this way."""
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = UpdatedLinear
        elif type(module) is TrainableTokensLayer and isinstance(module.get_base_layer(), nn.Embedding):
            module.__class__ = UpdatedEmbedding
            module.prepare()  # pyright: ignore
        elif type(module) is TrainableTokensWrapper and type(module.original_module) is nn.Linear:
            module.__class__ = UpdatedHead


class _Update(torch.autograd.Function):
    """``x @ W.T + bias + s * (x @ A.T) @ B.T``, of which x, A and B have gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.flatten(0, -2)
            low = a.to(x.dtype) @ rows.T  # (r, N): with the short side first, a CPU is up to five times as fast
            result = F.linear(rows, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
            result.addmm_(low.T, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale = scale
        return result.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        slope = given[0].flatten(0, -2)
        with torch.autocast(rows.device.type, enabled=False):
            inner = b.to(slope.dtype).T @ slope.T * ctx.scale  # (r, N)
            to_x = None
            if ctx.needs_input_grad[0]:
                to_x = slope @ weight.to(slope.dtype)
                to_x = to_x.addmm_(inner.T, a.to(slope.dtype)).view(*given[0].shape[:-1], weight.shape[1])
            to_a = (inner @ rows).to(a.dtype)
            to_b = (low @ slope * ctx.scale).T.to(b.dtype)
        return to_x, None, None, to_a, to_b, None
