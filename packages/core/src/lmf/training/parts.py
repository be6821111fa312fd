"""The functions that compute the parts of a model in a run: plain ones, or kernels that have passed a trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import layers
from ..errors import LmfError
from ..losses import linear_cross_entropy
from ..report import Reporter
from ..specs import Kernel
from .trials import trials

ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # relative difference to the plain function


@dataclass(frozen=True, slots=True)
class Parts:
    """The functions that compute the parts of a model; those of ``lmf.layers`` and ``lmf.losses`` by default.

    Attributes:
        rms_norm: Like ``lmf.layers.rms_norm``.
        add_rms_norm: Like ``lmf.layers.add_rms_norm``.
        glu: Like ``lmf.layers.glu``.
        rotary: Like ``lmf.layers.rotary``.
        linear_cross_entropy: Like ``lmf.losses.linear_cross_entropy``.
        attention: Like ``lmf.layers.attention``, or the name of an implementation that transformers knows.
        kernels: The names of the kernels among them, by the names of the parts.
    """

    rms_norm: Callable[..., torch.Tensor] = layers.rms_norm
    add_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]] = layers.add_rms_norm
    glu: Callable[..., torch.Tensor] = layers.glu
    rotary: Callable[..., tuple[torch.Tensor, torch.Tensor]] = layers.rotary
    linear_cross_entropy: Callable[..., torch.Tensor] = linear_cross_entropy
    attention: Callable[..., torch.Tensor] | str = layers.attention
    kernels: Mapping[str, str] = field(default_factory=dict)


PLAIN = Parts()


def load_parts(
    kernels: Mapping[str, Kernel],
    asked: Callable[[Kernel], bool],
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    report: Reporter,
) -> Parts:
    """Import kernels and try each beside the plain function.

    Args:
        kernels: By the names of the parts that they compute.
        asked: Whether a kernel was asked for by name; if not, one that fails is left out, and that is told.
        config: The configuration of the model, whose sizes are tried.
        dtype: The precision of the forward pass.
        device: Where it is computed.
        report: Is told what is left out.

    Raises:
        LmfError: A kernel that was asked for fails here, or computes something else.
    """
    parts = PLAIN
    for part, kernel in kernels.items():
        try:
            function = kernel.load()
            if not callable(function) and not (part == "attention" and isinstance(function, str)):
                raise LmfError(f"load returned {function!r}, which is no function")
            if callable(function):
                _try(part, function, config, dtype, device)
        except Exception as error:  # of any type: a compiler that does not know this device raises what it likes
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            if asked(kernel):
                raise LmfError(f"The kernel {kernel.name} cannot compute {part} here: {reason}") from error
            report.note(f"{part} is computed without the kernel {kernel.name}: {reason}")
            continue
        parts = replace(parts, **{part: function}, kernels={**parts.kernels, part: kernel.name})
    return parts


def _try(part: str, function: Callable[..., Any], config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Compare a function with the plain one on a few numbers of a model's sizes, with every gradient."""
    for inputs, more in trials(part, config, dtype, device):
        furthest = max(differences(function, getattr(PLAIN, part), inputs, more).values())
        if not furthest <= ALLOWED[dtype]:
            raise LmfError(f"it differs by {furthest:.1e} from plain PyTorch, and {ALLOWED[dtype]:.0e} is allowed")


def differences(
    function: Callable[..., Any],
    plain: Callable[..., Any],
    inputs: Sequence[Any],
    more: Mapping[str, Any],
    wide: torch.dtype | None = None,
) -> dict[str, float]:
    """Return how far a function is from a plain one, as ‖function - plain‖ / ‖plain‖.

    Args:
        function: The function.
        plain: Its definition.
        inputs: Arguments of both; tensors that require gradients get them.
        more: Arguments by name.
        wide: The precision in which the plain one computes; that of the inputs by default.

    Returns:
        The differences of the outputs, ``output 0`` and so on, and of the gradients by the number of the input.

    Raises:
        LmfError: A gradient is missing.
    """
    ours, exact = _computed(function, inputs, more, None), _computed(plain, inputs, more, wide)
    apart = {name: (ours[name].double() - exact[name].double()).norm() for name in exact}
    return {name: (apart[name] / exact[name].double().norm()).nan_to_num(nan=math.inf).item() for name in exact}


def _computed(
    function: Callable[..., Any], inputs: Sequence[Any], more: Mapping[str, Any], wide: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Return what a function gives for copies of its inputs, and the gradients of those that have one."""
    own = [_copied(x, wide) for x in inputs]
    result = function(*own, **more)
    outputs = list(result) if isinstance(result, tuple) else [result]
    chance = torch.Generator().manual_seed(1)
    slopes = [torch.randn(each.shape, generator=chance).to(each.device, inputs[0].dtype) for each in outputs]
    torch.autograd.backward(outputs, [slope.to(each.dtype) for slope, each in zip(slopes, outputs, strict=True)])
    found = {f"output {n}": each.detach() for n, each in enumerate(outputs)}
    for n, x in enumerate(own):
        if isinstance(x, torch.Tensor) and x.requires_grad:
            if x.grad is None:
                raise LmfError(f"it gives no gradient of argument {n}")
            found[f"gradient {n}"] = x.grad
    return found


def _copied(x: Any, wide: torch.dtype | None) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    dtype = wide if wide and x.is_floating_point() else x.dtype
    return x.detach().to(dtype, copy=True).requires_grad_(x.requires_grad)
