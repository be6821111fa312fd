"""The layers that train, and what becomes of the optimizer's state and of precision when they change."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lmf import ConfigError, ModelSpec, RunSettings, Tuner
from lmf.models import load_weights, read_tensors, shards
from torch import nn

from .precision import halved, joined, rounded_at_random
from .sampling import drawn
from .sharding import check_sharded, check_way
from .weights import read_weights

if TYPE_CHECKING:
    from . import LisaOptions

REMAINDER = "remainder"  # the key in the optimizer's state


class LisaTuner(Tuner):
    """Trains some decoder layers during each interval, and what is beside the layers all the time, where asked for.

    A layer that is left has no gradient and is touched by no optimizer until it is drawn again; its state
    is dropped, moved to host memory, or kept. Moments and the count of steps, on which the correction of
    their bias depends, belong to each parameter: a layer that starts without state starts at step 1.

    What is trained is in float32. Where frozen weights have 16 bits, a layer that is left is rounded at
    random, or with ``park`` and ``keep`` what rounding takes off stays beside its state.

    Attributes:
        active: Numbers of the layers that are trained now.
    """

    casts = True  # what is trained to float32

    def __init__(self, options: LisaOptions, spec: ModelSpec):
        self.options, self.path = options, spec.layers
        self.seed = 0
        self.active: tuple[int, ...] = ()
        self._layers: list[nn.Module] = []
        self._weights: list[float] = []
        self._settled = False  # whether the layers are as ``active`` says; after loading they may not be

    def configure(self, settings: RunSettings) -> None:
        check_way(settings.parallel, settings.dtype, self.options.state)
        self.seed = settings.seed

    def prepare(self, model: nn.Module, new_tokens: Sequence[int] = ()) -> nn.Module:
        """Train the layers of the first interval.

        Raises:
            ConfigError: The options do not fit the model.
        """
        options = self.options
        self._layers = list(model.get_submodule(self.path).children())
        if options.active_layers > len(self._layers):
            raise ConfigError(
                f"--active-layers {options.active_layers} is more than the {len(self._layers)} decoder layers "
                "of the model."
            )
        if options.layer_weights:
            self._weights = read_weights(options.layer_weights, model, self.path, len(self._layers))
        always = self._beside(model, new_tokens)
        model.requires_grad_(False)
        self.active = self.drawn_at(0)
        for parameter in (*always, *(p for number in self.active for p in self._layers[number].parameters())):
            parameter.requires_grad_(True)
        return model

    def trained(self, model: nn.Module) -> list[nn.Parameter]:
        """Return every layer's parameters, too; what has no gradient is no work for an optimizer."""
        layers = {parameter for layer in self._layers for parameter in layer.parameters()}
        return [parameter for parameter in model.parameters() if parameter.requires_grad or parameter in layers]

    def drawn_at(self, step: int) -> tuple[int, ...]:
        """Return the numbers of the layers that an optimizer step trains; steps count from 0."""
        options = self.options
        interval = step // options.interval
        return drawn(options.sampler, self.seed, interval, len(self._layers), options.active_layers, self._weights)

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Change the layers, where an interval begins or a run goes on.

        Raises:
            LmfError: The weights are sharded, and would have to change.
        """
        active = self.drawn_at(step)
        if active == self.active and self._settled:
            return
        check_sharded((p for layer in self._layers for p in layer.parameters()), self.options.state)
        low = self._frozen_dtype()
        for number, layer in enumerate(self._layers):
            for index, parameter in enumerate(layer.parameters()):
                if number in active:
                    self._enter(parameter, optimizer)
                else:
                    seed = zlib.crc32(f"{self.seed}:{step}:{number}:{index}".encode())
                    self._leave(parameter, optimizer, low, seed)
        self.active, self._settled = active, True

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put saved weights back, each in the precision in which it was saved.

        Raises:
            LmfError: A tensor is missing, foreign, of another shape, or not finite.
        """
        own = dict(model.named_parameters())
        for file in shards(folder):
            for name, tensor in read_tensors(file):
                if name in own and own[name].dtype != tensor.dtype:
                    own[name].data = own[name].data.to(tensor.dtype)
        load_weights(model, folder)
        self._settled = False

    def _frozen_dtype(self) -> torch.dtype:
        """Return the precision of weights that are not trained: the lowest there is."""
        return min((p.dtype for layer in self._layers for p in layer.parameters()), key=lambda dtype: dtype.itemsize)

    def _enter(self, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and key != "step":
                state[key] = value.to(parameter.device)
        remainder = state.pop(REMAINDER, None)
        if remainder is not None:
            parameter.data = joined(parameter.data, remainder)
        elif self.casts and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(True)

    def _leave(self, parameter: nn.Parameter, optimizer: torch.optim.Optimizer, low: torch.dtype, seed: int) -> None:
        parameter.requires_grad_(False)
        parameter.grad = None
        state = optimizer.state.get(parameter)
        if self.options.state == "reset":
            optimizer.state.pop(parameter, None)
            state = None
        if parameter.dtype != low:
            if state:
                parameter.data, state[REMAINDER] = halved(parameter.data)
            else:
                parameter.data = rounded_at_random(parameter.data, seed)
        if state and self.options.state == "park":
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and key != "step":
                    state[key] = _parked(value)

    def _beside(self, model: Any, new_tokens: Sequence[int]) -> list[nn.Parameter]:
        """Return the parameters beside the layers that are trained all the time."""
        options = self.options
        head = model.get_output_embeddings()
        heads = set(head.parameters()) if head is not None else set()
        inside = {parameter for layer in self._layers for parameter in layer.parameters()}
        tables = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        if heads & tables and options.train_embeddings != options.train_head:
            raise ConfigError(
                "The output head of this model is its input embeddings, one tensor for both: give "
                "--no-train-embeddings and --no-train-head together, or neither."
            )
        if new_tokens and not (options.train_embeddings and options.train_head):
            raise ConfigError(
                f"There are {len(new_tokens)} tokens that the model never learned, so embeddings and head must be "
                "trained. Leave out --no-train-embeddings and --no-train-head, or do without them: another --template, "
                "or no --train-new-tokens-only."
            )
        found = []
        for parameter in model.parameters():
            asked = options.train_norm
            if parameter in tables:
                asked = options.train_embeddings
            elif parameter in heads:
                asked = options.train_head
            if asked and parameter not in inside:
                found.append(parameter)
        return found


def _parked(value: torch.Tensor) -> torch.Tensor:
    """Return a copy in host memory, from where a GPU reads fastest."""
    return value.cpu() if value.device.type == "cpu" else value.to("cpu").pin_memory()
