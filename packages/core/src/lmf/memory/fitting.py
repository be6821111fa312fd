"""What would make a run fit: each change is forecast, none is guessed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from ..encoding.material import Material
from ..errors import LmfError
from ..plan import Plan
from ..training.learner import compute_dtype
from .forecast import forecast, most_work, of_each

LEAST = 256  # tokens; nobody wants shorter examples for the sake of memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A run that needs less.

    Attributes:
        flags: What to write otherwise: flags, and the method where it is another.
        bytes: What its tensors would need.
        fits: Whether that is there.
        changes: How many settings are otherwise; another method counts twice.
    """

    flags: str
    bytes: int
    fits: bool
    changes: int


def smaller(
    plan: Plan, device: torch.device, room: int, material: Material | None = None, processes: int = 1
) -> list[Change]:
    """Return changes with which a plan needs less memory, best first: those that fit, and of them the fewest changes.

    Tried are each setting that saves memory, and the other methods with their defaults; if none of
    them is enough, the settings together, for this method and for the others.

    Args:
        plan: The run.
        device: The device that it would run on.
        room: The bytes that there are for tensors.
        material: What is learned from, if it is encoded already.
        processes: How many share the model; what is told is of one of them.
    """
    settings = _settings(plan, device)
    methods = {
        name: dataclasses.replace(plan, method=method, method_options=method.options())
        for name, method in plan.plugins.methods.items()
        if method is not plan.method
    }
    found: list[Change] = []

    def attempt(flags: str, changed: Plan, changes: int) -> None:
        try:
            usage = forecast(changed, device, most_work(changed, material)).usage
            need = of_each(usage, plan.sharing.way, processes).total
        except LmfError:
            return  # a method that needs settings, or cannot tune this model
        found.append(Change(flags=flags, bytes=need, fits=need <= room, changes=changes))

    for flags, values in settings.items():
        attempt(flags, plan.having(**values), len(values))
    for name, other in methods.items():
        attempt(name, other, 2)
    if settings and not any(each.fits for each in found):
        together = {name: value for values in settings.values() for name, value in values.items()}
        for name, other in {"": plan, **methods}.items():
            attempt(" ".join(filter(None, [name, *settings])), other.having(**together), len(settings) + 2 * bool(name))
    return sorted(found, key=lambda each: (not each.fits, each.changes if each.fits else 0, each.bytes))


def _settings(plan: Plan, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return the settings that save memory, by what to write for them."""
    settings, found = plan.settings, {}
    if not settings.gradient_checkpointing:
        found["--gradient-checkpointing"] = {"gradient_checkpointing": True}
    if settings.micro_batch_tokens > settings.max_tokens and not settings.step_in_backward:
        found[f"--micro-batch-tokens {settings.max_tokens}"] = {"micro_batch_tokens": settings.max_tokens}
    elif settings.max_tokens > LEAST and not settings.step_in_backward:  # one example fills a pass
        shorter = settings.max_tokens // 2
        found[f"--max-tokens {shorter} --micro-batch-tokens {shorter}"] = {
            "max_tokens": shorter,
            "micro_batch_tokens": shorter,
        }
    if compute_dtype(settings.dtype, device) == torch.float32:
        found["--dtype bfloat16"] = {"dtype": "bfloat16"}
    return found
