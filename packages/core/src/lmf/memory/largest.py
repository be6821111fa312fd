"""``--micro-batch-tokens auto``: the largest micro-batches for which there is memory, by forecast."""

from __future__ import annotations

import dataclasses
import os

from ..encoding.material import Material
from ..parallel.processes import Processes
from ..plan import Plan
from ..report import Reporter, size
from ..runs import read_run
from ..settings import AUTO_TOKENS
from . import machine
from .forecast import forecast, most_work
from .ledger import Usage

MARGIN = 0.9  # of what is free: a forecast may be a tenth too low
GRAIN = 64  # tokens by which sizes differ
DIVIDED = {  # what each way to share a model divides among the processes
    "ddp": (),
    "fsdp": ("weights", "gradients", "state"),
    "zero1": ("state",),
    "zero2": ("gradients", "state"),
    "zero3": ("weights", "gradients", "state"),
}


def sized(plan: Plan, report: Reporter, processes: Processes, material: Material | None = None) -> Plan:
    """Return a plan whose micro-batches have a size: the one that was given, or for ``auto`` the largest that fits.

    What is computed does not depend on it but for the order of sums. A pass is never larger than a whole step, nor
    smaller than the longest example. A run that is continued keeps the size it had.

    Args:
        plan: The run.
        report: Is told the size.
        processes: Those that share the model; they all get the same size.
        material: What is learned from, if it is encoded already.

    Raises:
        LmfError: The run cannot be forecast.
    """
    settings = plan.settings
    if settings.micro_batch_tokens != AUTO_TOKENS:
        return plan
    if settings.resume:
        return _with(plan, read_run(settings.output)["settings"]["micro_batch_tokens"])
    own = processes.each(lambda: _largest(plan, report, processes, material))
    return _with(plan, min(processes.gather(own)))


def _largest(plan: Plan, report: Reporter, processes: Processes, material: Material | None) -> int:
    """Return the most tokens of a micro-batch that fit where this process computes."""
    device = processes.device
    room = int(machine.free(device) * MARGIN)
    if device.type == "cpu":
        room //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def need(tokens: int) -> int:
        usage = forecast(plan, device, most_work(_with(plan, tokens), material)).usage
        return of_each(usage, plan.sharing.way, processes.count)

    least = most_work(_with(plan, 1), material).tokens
    most = least * plan.settings.batch_size
    tokens, bytes = least, need(least)
    if bytes < room and most > least:
        each = max(1, need(2 * least) - bytes) / least  # what one more token takes
        tokens = min(most, least + int((room - bytes) / each) // GRAIN * GRAIN)
        while tokens > least and (bytes := need(tokens)) > room:  # it takes more than in proportion
            tokens = least + int((tokens - least) * 0.8) // GRAIN * GRAIN
    report.note(f"--micro-batch-tokens auto: {tokens:,}; forecast {size(bytes)}, and there is room for {size(room)}")
    return tokens


def of_each(usage: Usage, way: str, count: int) -> int:
    """Return the bytes that each of several processes has of the memory of a run, if they share it in a way."""
    parts = dataclasses.asdict(usage)
    return sum(-(-size // count) if name in DIVIDED[way] else size for name, size in parts.items())


def _with(plan: Plan, tokens: int) -> Plan:
    return dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, micro_batch_tokens=tokens))
