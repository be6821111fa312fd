"""A step of AdamW: ours beside torch's, of a weight as large as one of a model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .measure import Limits, Row, failure, poisoned, timed

COUNT = 2**27  # parameters
CHECKED = 2**16
HYPER: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepper:
    """A way to do a step.

    Attributes:
        name: What the tables call it.
        begin: Returns, from weights of float32 and gradients, what does a step, and what returns the weights then.
        moved: Bytes that a step must move for each parameter.
    """

    name: str
    begin: Callable[[torch.Tensor, torch.Tensor], tuple[Callable[[], Any], Callable[[], torch.Tensor]]]
    moved: float


def steppers(ours: bool) -> Iterator[Stepper]:
    """Yield torch's, and ours where they run."""
    yield Stepper(name="torch, fused, float32", begin=_torch, moved=28)
    if ours:
        yield Stepper(name="lmf adamw_, float32", begin=lambda w, g: _ours(w, g, False, False), moved=28)
        yield Stepper(name="lmf adamw_, bfloat16 and remainder", begin=lambda w, g: _ours(w, g, True, False), moved=26)
        yield Stepper(
            name="the same, moments of 8 bits", begin=lambda w, g: _ours(w, g, True, True), moved=14 + 16 / 256
        )


def measure_step(stepper: Stepper, device: torch.device, known: Limits, count: int = COUNT) -> Row:
    """Return the figures of a step; one that is wrong, or fails, gets the reason under ``why``."""
    try:
        chance = torch.Generator(device).manual_seed(0)
        weight, gradient = (torch.randn(CHECKED, generator=chance, device=device) for _ in range(2))
        exact, slope = weight.double(), gradient.double()
        exact -= HYPER["lr"] * (HYPER["weight_decay"] * exact + slope / (slope.abs() + HYPER["eps"]))  # the first step
        with poisoned():
            step, weights = stepper.begin(weight.clone(), gradient)
            step()
        error = ((weights().double() - exact).norm() / (exact - weight).norm()).item()
        if not error <= 1e-2:  # gradients of bfloat16 are so coarse that some signs of tiny ones change nothing
            return {"error": error, "why": f"wrong: {error:.1e} of a step from float64"}
        weight, gradient = (torch.randn(count, generator=chance, device=device) for _ in range(2))
        step, _ = stepper.begin(weight, gradient)
        seconds = statistics.median(timed(step, device)[0])
    except Exception as error:  # of any type: a kernel raises what it likes
        return failure(error)
    least = known.least(stepper.moved * count, 0)
    return {"error": error, "forward": seconds, "forward share": least / seconds, "memory": None}


def _torch(weight: torch.Tensor, gradient: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], torch.Tensor]]:
    weight.requires_grad_().grad = gradient
    optimizer = torch.optim.AdamW([weight], **HYPER, fused=True)
    return optimizer.step, weight.detach


def _ours(
    weight: torch.Tensor, gradient: torch.Tensor, narrow: bool, eight: bool
) -> tuple[Callable[[], Any], Callable[[], torch.Tensor]]:
    from ..adamw import SHARED, EightBit, adamw_

    def moment(signed: bool) -> Any:
        if not eight:
            return torch.zeros_like(weight)
        code = torch.linspace(-1.0 if signed else 0.0, 1.0, 256, device=weight.device)
        scales = torch.zeros(-(-weight.numel() // SHARED), device=weight.device)
        return EightBit(torch.zeros_like(weight, dtype=torch.uint8), scales, code)

    moments = moment(True), moment(False)
    number = iter(range(1, 2**31))
    if not narrow:
        return lambda: adamw_(weight, None, gradient, *moments, **HYPER, step=next(number)), lambda: weight
    bits = weight.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    remainder = (bits - (upper << 16)).to(torch.int16)
    half = upper.to(torch.int16).view(torch.bfloat16)
    slope = gradient.bfloat16()

    def whole() -> torch.Tensor:
        bits = (half.view(torch.int16).to(torch.int32) << 16) + remainder.to(torch.int32)
        return bits.view(torch.float32)

    return lambda: adamw_(half, remainder, slope, *moments, **HYPER, step=next(number)), whole
