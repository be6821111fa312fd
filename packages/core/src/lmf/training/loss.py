"""From a batch to its loss, without logits of the whole batch where the model allows it.

Most causal language models are a decoder, a linear head on its hidden states, and perhaps a factor and a bound of the
logits. Of such a model the decoder is called and ``linear_cross_entropy`` does the rest. Whether a model is one
is seen from its parts and then tried: its own logits must be what the parts give. Any other is called as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ..encoding.encoder import IGNORED, Example
from ..losses import linear_cross_entropy
from ..models import inner, logit_options
from ..specs import Criterion
from .packing import Batch, pack, pad


class Learned(nn.Module):
    """A model and what it learns, as the one module that the processes of a run share."""

    def __init__(self, model: nn.Module, criterion: Criterion):
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, asked: Batch | Callable[[], Any]) -> Any:
        """Return the loss of a batch summed over what counts, a scalar; or the ``result`` of work that calls the model.

        What divides a model has it ready while this module is called, and only then.
        """
        return {"result": asked()} if callable(asked) else self.criterion.loss(self.model, asked)


@dataclass(frozen=True, slots=True)
class Head:
    """How a model makes logits: ``softcap * tanh(scale * (decoder(...) @ weight.T + bias) / softcap)``.

    Attributes:
        decoder: Gives the hidden states.
        linear: The output head, which has the weight and the bias.
        scale: What the logits are multiplied by.
        softcap: Their bound; None where they have none.
    """

    decoder: nn.Module
    linear: nn.Module
    scale: float
    softcap: float | None

    @property
    def weight(self) -> torch.Tensor:
        """(V, d); of some heads, it is put together anew each time."""
        return self.linear.weight  # pyright: ignore

    @property
    def bias(self) -> torch.Tensor | None:
        """(V,)."""
        return self.linear.bias  # pyright: ignore

    def hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the hidden states of all positions; (N, d), or (B * L, d) where examples are padded."""
        return self.decoder(**inputs)[0].flatten(0, 1)

    def logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the logits of all positions; (N, V), or (B * L, V)."""
        logits = F.linear(self.hidden(inputs), self.weight, self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def token_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the weighted sum of the negative log-likelihoods of the targets in nats, a scalar."""
    head = find_head(model, "position_ids" in batch.inputs)
    if head:
        return _LOSS.get(inner(model), linear_cross_entropy)(
            head.hidden(batch.inputs)[batch.index],
            head.weight,
            batch.targets,
            bias=head.bias,
            weights=batch.weights,
            scale=head.scale,
            softcap=head.softcap,
        )
    if "position_ids" in batch.inputs:
        logits = model(**batch.inputs, logits_to_keep=batch.index).logits[0]  # (K, V)
    else:
        logits = model(**batch.inputs).logits.flatten(0, 1)[batch.index]
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses if batch.weights is None else losses * batch.weights).sum()


def use_loss(model: nn.Module, function: Callable[..., torch.Tensor]) -> None:
    """Have ``token_loss`` compute the loss of a model by another function like ``linear_cross_entropy``."""
    _LOSS[inner(model)] = function


_LOSS: WeakKeyDictionary[nn.Module, Callable[..., torch.Tensor]] = WeakKeyDictionary()


def take_for_head(kind: type[nn.Module]) -> None:
    """Treat modules of a class as output heads that compute ``x @ weight.T + bias``, and no more than that.

    Others may compute more than their weight says, like an update that is added to it and begins at zero.

    Args:
        kind: Its modules have ``weight`` (V, d), ``bias`` (V,) or None, and first among their parameters one with V
            rows in the precision of the weight.
    """
    _HEADS.add(kind)


_HEADS: set[type[nn.Module]] = {nn.Linear}


def find_head(model: nn.Module, packed: bool) -> Head | None:
    """Return the parts of a model, or None if its logits are not what they give."""
    head = _parts(inner(model))
    if head is None or isinstance(next(head.linear.parameters()), FakeTensor):
        return head  # there is nothing to try where there are no numbers
    tried = _TRIED.get(model)
    if tried is None or tried[0] != head:
        tried = _TRIED[model] = (head, _agrees(model, head, packed))
    return head if tried[1] else None


_TRIED: WeakKeyDictionary[nn.Module, tuple[Head, bool]] = WeakKeyDictionary()


def _parts(model: Any) -> Head | None:
    linear = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if linear is None or type(linear) not in _HEADS or decoder in (None, model):
        return None
    return Head(decoder, linear, *logit_options(model.config))


def _agrees(model: nn.Module, head: Head, packed: bool) -> bool:
    """Tell whether a model's own logits for a few tokens are those of its parts."""
    weight = next(head.linear.parameters())
    ids = [number % len(weight) for number in range(1, 6)]
    batch = (pack if packed else pad)([Example(ids, [IGNORED] * len(ids), "")]).to(weight.device)
    with _undisturbed(model):
        whole = model(**batch.inputs).logits.flatten(0, 1).float()
        apart = (whole - head.logits(batch.inputs)).abs().max()
    exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(whole.device.type)
    return bool(apart <= (1e-4 if exact else 2e-2) * whole.abs().max())


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Compute without dropout and gradients, and leave no trace in the modules or in autocast's cache."""
    device = next(model.parameters()).device.type
    dtype, on = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # weights cast here would be used again in a pass that needs their gradients
        with torch.no_grad(), torch.autocast(device, dtype, enabled=on, cache_enabled=False):
            yield
    finally:
        for module in training:
            module.training = True
