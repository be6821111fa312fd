"""Exchange the parts of a model for those of ``lmf.layers``, or for kernels, where they compute the same.

What a part is, is seen from its class and members and then tried on a few numbers. A part keeps its weights, its
name and its type: only its class is replaced by a subclass with another ``forward``, and ``undo`` takes that back.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from .. import layers
from .parts import PLAIN, Parts

ROTARY = "apply_rotary_pos_emb"  # what transformers calls it in every family
ACTIVATIONS = ("silu", "gelu")


def lean(model: nn.Module, parts: Parts = PLAIN) -> Counter[str]:
    """Exchange what can be exchanged, before a method changes the model.

    Returns:
        How many modules now compute each part, by its name.
    """
    count: Counter[str] = Counter()
    for module in model.modules():
        for name, kind in (("rms_norm", _norm), ("glu", _mlp), ("rotary", _attention)):
            forward = kind(module, parts)
            if forward:
                module.__class__ = _subclass(type(module), forward)
                count[name] += 1
                break
    if "add_rms_norm" in parts.kernels:  # the plain one is what layers do anyway
        for module in filter(_is_layer, model.modules()):
            module.__class__ = _subclass(type(module), _layer_forward)
            count["add_rms_norm"] += 1
    return count


def undo(model: nn.Module) -> None:
    """Take back what ``lean`` has exchanged."""
    for module in model.modules():
        if own := getattr(type(module), _OWN, None):
            module.__class__ = own


_OWN = "_lmf_own_class"


@functools.cache
def _subclass(base: type, forward: Callable[..., Any]) -> type:
    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__, _OWN: base})


def _norm(module: Any, parts: Parts) -> Callable[..., Any] | None:
    if not type(module).__name__.endswith("RMSNorm") or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    for eps, offset in itertools.product(("variance_epsilon", "eps"), (False, True)):
        forward = _norm_forward(eps, offset, parts.rms_norm, parts.add_rms_norm)
        if hasattr(module, eps) and _agree(module, forward, module.weight.shape[-1], module.weight):
            return forward
    return None


@functools.cache
def _norm_forward(
    eps: str, offset: bool, rms_norm: Callable[..., Any], add_rms_norm: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(self: Any, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return rms_norm(x, self.weight, getattr(self, eps), offset=offset)
        return add_rms_norm(x, residual, self.weight, getattr(self, eps), offset=offset)

    return forward


def _is_layer(module: Any) -> bool:
    """Tell whether a module is a layer with the code of Llama's, as most have, whose second norm has been exchanged."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    llama = inspect.unwrap(LlamaDecoderLayer.forward).__code__
    same = all(getattr(code, part, None) == getattr(llama, part) for part in ("co_code", "co_names", "co_varnames"))
    return same and hasattr(type(module.post_attention_layernorm), _OWN)


def _layer_forward(self: Any, hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """Do what Llama's layer does, with the first sum and the norm of it in one."""
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), *args, **options)
    normed, residual = self.post_attention_layernorm(attended, hidden_states)
    return residual + self.mlp(normed)


def _mlp(module: Any, parts: Parts) -> Callable[..., Any] | None:
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in ("gate_proj", "up_proj", "down_proj")):
        return None
    for activation in ACTIVATIONS:
        forward = _mlp_forward(activation, parts.glu)
        if hasattr(module, "act_fn") and _agree(module, forward, module.gate_proj.in_features, module.up_proj.weight):
            return forward
    return None


@functools.cache
def _mlp_forward(activation: str, glu: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(glu(self.gate_proj(x), self.up_proj(x), activation))

    return forward


def _agree(module: nn.Module, forward: Callable[..., Any], width: int, weight: torch.Tensor) -> bool:
    """Tell whether a module gives for three random vectors what another ``forward`` gives."""
    if isinstance(weight, FakeTensor):  # no numbers to try: it is forecast as if they agreed
        return True
    x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0)).to(weight)
    training = module.training
    module.train()  # what it does then is what counts: dropout would show
    with torch.no_grad():
        own, other = module(x), forward(module, x)
    module.train(training)
    allowed = (1e-5 if own.dtype in (torch.float32, torch.float64) else 2e-2) * own.abs().max()
    return own.dtype == other.dtype and bool(own.any() and (own - other).abs().max() <= allowed)  # zeros tell nothing


def _attention(module: nn.Module, parts: Parts) -> Callable[..., Any] | None:
    forward = type(module).forward
    if isinstance(forward, FunctionType) and ROTARY in forward.__code__.co_names:
        return _turning(forward, parts.rotary)
    return None


@functools.cache
def _turning(forward: FunctionType, rotary: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the ``forward`` of an attention layer with our rotation for its own, or None if they differ."""
    names = forward.__globals__
    with unset_fake_temporarily():  # a rotation has no weights and can be tried in a forecast too
        alike = ROTARY in names and _turns_alike(names[ROTARY])
    if not alike:
        return None
    code, defaults, closure = forward.__code__, forward.__defaults__, forward.__closure__
    other = FunctionType(code, {**names, ROTARY: rotary}, forward.__name__, defaults, closure)
    other.__kwdefaults__ = forward.__kwdefaults__
    return other


def _turns_alike(own: Callable[..., Any]) -> bool:
    """Tell whether a rotation is ours: of whole heads and, if it can do that, of a part."""
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 3, 8, generator=random), torch.randn(1, 1, 3, 8, generator=random)
    for width in (8, 4):
        angle = torch.randn(1, 3, width, generator=random)
        try:
            theirs = own(q, k, angle.cos(), angle.sin())
        except (TypeError, ValueError, RuntimeError):  # it takes other arguments, or only whole heads
            return width == 4
        ours = layers.rotary(q, k, angle.cos(), angle.sin())
        if not all(a.shape == b.shape and torch.allclose(a, b, atol=1e-6) for a, b in zip(theirs, ours, strict=True)):
            return False
    return True
