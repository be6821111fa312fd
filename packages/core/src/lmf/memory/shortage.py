"""Out of memory: what took it, and which settings need less."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from ..config import flag
from ..encoding.material import Material
from ..errors import LmfError
from ..parallel.processes import Processes
from ..plan import NOTED, Plan
from ..report import size
from . import machine
from .fitting import smaller
from .forecast import forecast, most_work, of_each

T = TypeVar("T")
SHOWN = 6  # changes
MILD = {flag(name) for name in NOTED}  # with which a run can be continued


def explained(
    work: Callable[[], T],
    plan: Plan,
    material: Material,
    processes: Processes,
    when: Callable[[], str],
    left: Callable[[], str] = str,
) -> T:
    """Do work and return what it returns; turn a lack of memory into an error that says what took it and what helps.

    Args:
        work: The work.
        plan: The run.
        material: What it learns from.
        processes: Its processes, of which this is one.
        when: Returns what the run was at.
        left: Returns what is left of it; nothing by default.

    Raises:
        LmfError: There was not enough memory.
    """
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        told = f"Out of memory {when()}: {_account(error, processes.device)}."
    # the error is gone, and with it the frames of the work, which hold tensors
    raise LmfError(f"{told}\n{_changes(plan, material, processes)}\n{left()}".rstrip())


def is_shortage(error: BaseException) -> bool:
    """Tell whether an error means that memory was short. For main memory, torch has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _account(error: BaseException, device: torch.device) -> str:
    asked = re.search(r"tried to allocate ([\d.]+) ?(\w+)", str(error), re.I)
    if asked and asked[2] == "bytes":
        more = f"{size(int(asked[1]))} more were asked for"
    else:
        more = f"{asked[1]} {asked[2]} more were asked for" if asked else "more was asked for than there is"
    free, whole = size(machine.free(device)), size(machine.capacity(device))
    return f"{more}, {free} of {whole} are free, and the run had {size(machine.peak(device))} at most"


def _changes(plan: Plan, material: Material, processes: Processes) -> str:
    """Return what a run needs at most by forecast, and with which changes it needs less, a line each."""
    device, count = processes.device, processes.count
    try:
        whole = forecast(plan, device, work := most_work(plan, material)).usage
        usage = of_each(whole, plan.sharing.way, count)
        changes = smaller(plan, device, machine.capacity(device), material, count)
    except LmfError as error:
        return f"There is no forecast of what took it: {error}"
    except MemoryError:
        return "There is no memory for a forecast of what took it, either; lmf plan makes one."
    parts = {name: getattr(usage, name) for name in usage.__dataclass_fields__}
    parts["optimizer state"] = parts.pop("state")
    ranked = sorted(parts.items(), key=lambda each: -each[1])
    took = ", ".join(f"{name} {size(bytes)}" for name, bytes in ranked if bytes > usage.total / 100)
    lines = [f"A micro-batch of {work.tokens:,} tokens takes up to {size(usage.total)} (forecast): {took}."]
    less = sorted((each for each in changes if each.bytes < usage.total), key=lambda each: (each.changes, each.bytes))
    if less:
        lines.append("What needs less:")
        wide = max(len(each.flags) for each in less[:SHOWN])
        for each in less[:SHOWN]:
            mild = {word for word in each.flags.split() if not word.isdecimal()} <= MILD
            share = f"{each.bytes / usage.total:.0%} of it{'' if mild else ', in a new run'}"
            lines.append(f"  {each.flags:{wide}}  {size(each.bytes)}, {share}")
    ways = [way for way in ("fsdp", "zero3") if all(way in part.parallel for part in (plan.method, plan.optimizer))]
    if count > 1 and plan.sharing.way == "ddp" and ways:
        part = size(of_each(whole, ways[0], count).total)
        lines.append(f"Divided among the {count} processes by --parallel {ways[0]}, each of them needs {part}.")
    return "\n".join(lines)
