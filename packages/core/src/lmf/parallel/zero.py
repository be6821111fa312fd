"""A model that DeepSpeed divides among the processes (ZeRO, arXiv:1910.02054).

Stage 1 divides the state of the optimizer, stage 2 the gradients too, stage 3 also the weights. What is trained is
fixed when the run begins.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ..encoding.encoder import IGNORED, Example
from ..errors import ConfigError, LmfError, did_you_mean
from ..models import inner
from ..training.packing import Batch
from .choice import Sharing
from .copies import Copies, gathered
from .pieces import Piece, Saved, State, groups_of
from .zerofile import fill_zero

T = TypeVar("T")
MASTER = "master"  # the field of a weight in full precision, beside one in bfloat16


class Zero(Copies):
    """Each process steps its part of all trained weights, which stand end to end."""

    stage: int
    lockstep = True

    @classmethod
    def check(cls, sharing: Sharing, device: torch.device) -> None:
        known = _deepspeed(device).runtime.zero.config.DeepSpeedZeroConfig.model_fields
        names = {*known, *(field.alias for field in known.values() if field.alias)}
        for key in sharing.config.get("zero_optimization", {}):
            if key not in names:
                near = did_you_mean(key, names)
                raise ConfigError(f"--deepspeed {sharing.file}: zero_optimization.{key} is no key of DeepSpeed.{near}")

    def _begin(self, build: Callable[[], torch.optim.Optimizer]) -> None:
        deepspeed = _deepspeed(self.processes.device)
        base: Any = inner(self.model)
        self.low = self.learner.compute == torch.bfloat16
        config = fill_zero(
            self.sharing.config,
            stage=self.stage,
            offload=self.sharing.offload,
            clip=self.settings.clip,
            bfloat16=self.low,
            hidden=base.config.get_text_config().hidden_size,
            processes=self.processes.count,
        )
        self.low = config["bf16"]["enabled"]
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16 if self.low else torch.float32)
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = build()
        self.wrapped, self.zero, _, _ = deepspeed.initialize(
            model=self.learned, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        self.engine: Any = self.wrapped
        self._prepared()

    def _prepared(self) -> None:
        """Tell DeepSpeed of the model after it has."""

    def follow(self) -> None:
        pass  # no method that changes what is trained is let here

    def close(self) -> None:
        self.engine.destroy()

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.engine(batch)

    @contextlib.contextmanager
    def passing(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss * self.processes.count, scale_wrt_gas=False)

    def norm(self) -> torch.Tensor:
        """Take the step, and return the norm of the gradients; where that is not finite, no step was taken."""
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), device=self.processes.device).float()

    def step(self, norm: torch.Tensor) -> None:
        pass

    @contextlib.contextmanager
    def whole(self, parameters: Collection[nn.Parameter], change: bool = False) -> Iterator[None]:
        with super().whole(parameters, change):
            yield
        if change:
            self.zero.refresh_fp32_params()

    def state(self) -> State:
        self._link()
        own = self._fields()
        tensors: dict[str, Piece] = {}
        for name, parameter in self.named.items():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            for field, value in own.items():
                if value.ndim:
                    start, values = self._own(parameter, field)
                    tensors[f"{name}/{field}"] = Piece(values, start, shape)
                elif self.processes.main:
                    tensors[f"{name}/{field}"] = Piece(value.detach().cpu().clone(), 0, ())
            if self.low:
                start, values = self._own(parameter, None)
                tensors[f"{name}/{MASTER}"] = Piece(values, start, shape)
        kept = {name: piece for name, piece in tensors.items() if piece.values.numel()}
        return State(kept, {}, groups_of(self._base))

    def restore(self, saved: Saved) -> None:
        for group, values in zip(self._base.param_groups, saved.groups, strict=True):
            group.update(values)
        fields = {name.rpartition("/")[2] for name in saved.shapes} - {MASTER}
        counts = {name.rpartition("/")[2]: name for name, shape in saved.shapes.items() if not shape}
        if {name.rpartition("/")[0] for name in saved.shapes} - self.named.keys():
            raise LmfError(f"{saved.folder} has optimizer state for parameters that are not trained now.")
        for flat in self._flat():
            self._base.state[flat] = {
                field: saved.whole(counts[field]) if field in counts else torch.zeros_like(flat.data)
                for field in sorted(fields)
            }
        self._link()
        for name, parameter in self.named.items():
            for field in (*sorted(fields - counts.keys()), *([MASTER] if self.low else [])):
                if f"{name}/{field}" in saved.shapes:
                    self._put(parameter, None if field == MASTER else field, saved, f"{name}/{field}")

    def _fields(self) -> dict[str, torch.Tensor]:
        """Return the state of some part of the weights; nothing before the first step."""
        first: Mapping[str, Any] = next(iter(self._base.state.values()), {})
        return {field: value for field, value in first.items() if isinstance(value, torch.Tensor)}

    @property
    def _base(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    def _flat(self) -> list[torch.Tensor]:
        """Return what this process steps: its parts of weights, end to end."""
        return self.zero.single_partition_of_fp32_groups

    def _link(self) -> None:
        """Have DeepSpeed find the parts of each weight in the state; it looks after the step of the first group."""
        self.zero._hp_optimizer_states_linked = False
        self.zero._lazy_init_hp_params_optimizer_state()

    def _own(self, parameter: Any, field: str | None) -> tuple[int, torch.Tensor]:
        """Return what this process has of a weight, or of a field of its state: the first element, and all."""
        mapping = parameter._hp_mapping
        if mapping is None:
            return 0, torch.empty(0)
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(field).detach().cpu().clone()

    def _put(self, parameter: Any, field: str | None, saved: Saved, name: str) -> None:
        """Put these elements back."""
        mapping = parameter._hp_mapping
        if mapping is not None:
            start, count = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            mapping.get_hp_fragment(field).copy_(saved.read(name, start, start + count))


class Zero1(Zero):
    """The state of the optimizer is divided."""

    stage = 1


class Zero2(Zero):
    """The state of the optimizer and the gradients are divided."""

    stage = 2


class Zero3(Zero):
    """The state of the optimizer, the gradients and the weights are divided."""

    stage = 3

    def _prepared(self) -> None:
        """Have the weights of the head ready where the loss is computed, for nothing calls the head there.

        Of other modules that use the weights of one another, DeepSpeed takes notice in its first forward pass; in a
        later one, which fetches ahead, it would be too late.
        """
        from deepspeed.runtime.zero import register_external_parameter

        head = inner(self.model).get_output_embeddings()
        for parameter in head.parameters() if head is not None else ():
            register_external_parameter(self.learned, parameter)
        batch = self.learner.batch([Example([1, 2, 3], [IGNORED] * 3, "")]).to(self.processes.device)
        self.within(lambda: self.model(**batch.inputs).logits)

    def within(self, work: Callable[[], T]) -> T | None:
        with torch.no_grad():
            return self.engine(work)["result"]

    @contextlib.contextmanager
    def whole(self, parameters: Collection[nn.Parameter], change: bool = False) -> Iterator[None]:
        with gathered(self.model, parameters, self._gather, self._scatter if change else None):
            yield
        if change:
            self.zero.refresh_fp32_params()

    def _gather(self, parameter: nn.Parameter) -> torch.Tensor:
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().cpu().clone() if self.processes.main else torch.empty(0)

    def _scatter(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            if self.processes.main:
                parameter.data.copy_(value)

    def finite(self) -> bool:
        parts = [getattr(parameter, "ds_tensor") for parameter in self.model.parameters()]  # noqa: B009 DeepSpeed's
        return not self.processes.largest(int(not all(part.isfinite().all() for part in parts)))

    def _flat(self) -> list[torch.Tensor]:
        return self.zero.fp32_partitioned_groups_flat

    def _link(self) -> None:
        pass

    def _own(self, parameter: Any, field: str | None) -> tuple[int, torch.Tensor]:
        start, count = self._span(parameter)
        return start, self.zero.get_local_fp32_param(parameter, field)[:count].detach().cpu().clone()

    def _put(self, parameter: Any, field: str | None, saved: Saved, name: str) -> None:
        start, count = self._span(parameter)
        values = torch.zeros(parameter.ds_tensor.numel())  # the end of the last part is padding
        values[:count] = saved.read(name, start, start + count)
        self.zero.set_local_hp_param(values, parameter, field)

    def _span(self, parameter: Any) -> tuple[int, int]:
        """Return the first element of a weight that this process has, and how many."""
        size = parameter.ds_tensor.numel()
        start = min(size * self.processes.rank, parameter.ds_numel)
        return start, min(size, parameter.ds_numel - start)


def _deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for the processes that are there.

    Raises:
        LmfError: It is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        raise LmfError("ZeRO needs the package deepspeed: pip install 'lmf-core[torch,deepspeed]'") from None
    warnings.filterwarnings("ignore", ".*is deprecated. Please use", FutureWarning)  # what it calls of torch
    # only inference uses it, and to build it takes a compiler and minutes
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed
