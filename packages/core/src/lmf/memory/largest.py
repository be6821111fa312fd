"""``--micro-batch-tokens auto``: the largest micro-batches for which there is memory, by forecast."""

from __future__ import annotations

import os

from ..encoding.material import Material
from ..errors import LmfError
from ..parallel.processes import Processes
from ..plan import Plan
from ..report import Reporter, size
from ..runs import read_run
from ..settings import AUTO_TOKENS
from . import machine
from .forecast import forecast, most_work, of_each

MARGIN = 0.9  # of what is free: a forecast may be a tenth too low
GRAIN = 64  # tokens by which sizes differ


def sized(plan: Plan, report: Reporter, processes: Processes, material: Material | None = None) -> Plan:
    """Return a plan whose micro-batches have a size: the one that was given, or for ``auto`` the largest that fits.

    Without dropout, what is computed does not depend on it but for the order of sums. A pass is never larger than a
    whole step, nor smaller than the longest example. A run that is continued keeps the size it had.

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
    if settings.continues:
        return plan.having(micro_batch_tokens=read_run(settings.output)["settings"]["micro_batch_tokens"])
    found = processes.gather(processes.each(lambda: _largest(plan, processes, material)))
    tokens, need, room = min(found)
    report.note(f"--micro-batch-tokens auto: {tokens:,}; forecast {size(need)}, and there is room for {size(room)}")
    return plan.having(micro_batch_tokens=tokens)


def _largest(plan: Plan, processes: Processes, material: Material | None) -> tuple[int, int, int]:
    """Return the most tokens of a micro-batch that fit where this process computes, what they need and what there is.

    Raises:
        LmfError: The run cannot be forecast.
    """
    device = processes.device
    room = int(machine.free(device) * MARGIN)
    if device.type == "cpu":
        room //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def need(tokens: int) -> int:
        usage = forecast(plan, device, most_work(plan.having(micro_batch_tokens=tokens), material)).usage
        return of_each(usage, plan.sharing.way, processes.count).total

    least = most_work(plan.having(micro_batch_tokens=1), material).tokens
    most = least * plan.settings.batch_size
    try:
        low = bytes = need(least)
        tokens = least
        if low < room and most > least:
            each = max(1, need(2 * least) - low) / least  # what one more token takes
            tokens = min(most, least + int((room - low) / each) // GRAIN * GRAIN)
            while (bytes := need(tokens)) > room and tokens > least:  # it takes more than in proportion
                share = (room - low) / (bytes - low)
                tokens = max(least, min(tokens - GRAIN, least + int((tokens - least) * share) // GRAIN * GRAIN))
    except LmfError as error:
        raise LmfError(f"--micro-batch-tokens auto needs a forecast; give a number instead. {error}") from None
    return tokens, bytes, room
