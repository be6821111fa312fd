"""The memory of a run: the forecast of ``lmf plan``, and ``lmf profile memory``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmf import LmfError
from lmf.report import size

from . import learn
from .listings import table

if TYPE_CHECKING:
    from lmf.memory.fitting import Change
    from lmf.memory.ledger import Peak
    from lmf.plan import Plan

STEPS = 3  # at most; the second is the first that finds the optimizer's state
NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "state": "optimizer state",
    "activations": "activations",
    "logits": "logits",
    "temporaries": "temporaries",
    "process": "process",
}


def foreseen(plan: Plan) -> dict[str, Any]:
    """Return the forecast of a plan as JSON values; under ``problem`` the reason why there is none."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return {"problem": "torch is not installed: pip install lmf-core[torch]"}
    from lmf.memory import fitting, machine
    from lmf.memory.forecast import forecast, most_work
    from lmf.memory.largest import sized
    from lmf.models import quiet
    from lmf.parallel.processes import Processes
    from lmf.report import Reporter

    quiet()
    device = machine.device()
    besides, capacity = machine.process(device), machine.capacity(device)
    try:
        plan = sized(plan, Reporter(), Processes(device=device))
        work = most_work(plan)
        peak = forecast(plan, device, work)
    except LmfError as error:
        return {"problem": str(error)}
    need = besides + peak.usage.total
    changes = fitting.smaller(plan, device, capacity - besides) if need > capacity else []
    return {
        "device": str(device),
        "tokens": work.tokens,
        **_parts(peak, besides),
        "capacity": capacity,
        "fits": need <= capacity,
        "changes": [_change(change, besides) for change in changes],
    }


def show_forecast(found: Mapping[str, Any]) -> None:
    """Print what ``foreseen`` returned."""
    if "problem" in found:
        print(f"memory: no forecast: {found['problem']}")
        return
    print(
        f"memory forecast ({found['device']}), for micro-batches of {found['tokens']:,} tokens, "
        "all of them learned, and no new tokens:"
    )
    _show_parts({"at the peak": found["peak"], "at most": found["most"]})
    print(f"memory of this machine: {size(found['capacity'])}: the run {'fits' if found['fits'] else 'DOES NOT FIT'}")
    if found["fits"]:
        return
    if not any(change["fits"] for change in found["changes"]):
        print("None of these changes is enough; what they would need:")
    rows = [
        [change["flags"], size(change["bytes"]), "fits" if change["fits"] else ""] for change in found["changes"][:8]
    ]
    table(["change", "peak", ""], rows)


def memory(plan: Plan, shown: learn.Shown) -> None:
    """Take a few steps of a run, write nothing, and print the memory they took beside the forecast."""
    from accelerate.utils import set_seed
    from lmf.encoding.material import encode_data
    from lmf.memory import machine
    from lmf.memory.forecast import forecast, measure
    from lmf.memory.largest import sized
    from lmf.models import quiet
    from lmf.parallel.processes import Processes
    from lmf.report import Reporter
    from lmf.training.learner import load_learner

    from .progress import Progress

    quiet()
    report = Reporter() if shown.json else Progress()
    device = machine.device()
    set_seed(plan.settings.seed)
    material = encode_data(plan, report)
    plan = sized(plan, report, Processes(device=device), material)
    besides = machine.process(device)
    measured, work = measure(plan, material, load_learner(plan, material, device, report), device, STEPS)
    used = machine.peak(device)  # before the forecast, which takes some itself
    found: dict[str, Any] = {"device": str(device), "steps": work.steps, "tokens": work.tokens}
    found["measured"] = _parts(measured, besides)
    try:
        found["forecast"] = _parts(forecast(plan, device, work), besides)
    except LmfError as error:
        found["problem"] = str(error)
    own = 0 if device.type == "cuda" else besides  # torch counts what it gave out; RSS is all of the process
    found["used"] = used
    if "problem" not in found:
        found["forecast_to_used"] = (found["forecast"]["total"] - besides + own) / used
        found["forecast_to_measured"] = found["forecast"]["tensors"] / measured.usage.total
    if shown.json:
        print(json.dumps(found, indent=2))
        return
    _show_measured(found)


def _show_measured(found: Mapping[str, Any]) -> None:
    columns = {"measured": found["measured"]["peak"]}
    if "problem" not in found:
        columns["forecast"] = found["forecast"]["peak"]
    print(
        f"memory at the peak of {found['steps']} step{'s' * (found['steps'] > 1)} ({found['device']}), "
        f"largest micro-batch {found['tokens']:,} tokens:"
    )
    _show_parts(columns)
    what = "the most that torch gave out" if found["device"] != "cpu" else "the most main memory this process had"
    print(f"{what}: {size(found['used'])}")
    if "problem" in found:
        print(f"no forecast: {found['problem']}")
        return
    print(
        f"forecast / measured: {found['forecast_to_measured']:.3f} of tensors, "
        f"{found['forecast_to_used']:.3f} of that memory"
    )


def _parts(peak: Peak, besides: int) -> dict[str, Any]:
    return {
        "peak": {**dataclasses.asdict(peak.usage), "process": besides},
        "most": {**dataclasses.asdict(peak.most), "process": besides},
        "tensors": peak.usage.total,
        "total": peak.usage.total + besides,
    }


def _show_parts(columns: Mapping[str, Mapping[str, int]]) -> None:
    rows = [[name, *(size(column[key]) for column in columns.values())] for key, name in NAMES.items()]
    sums = [size(sum(column.values())) if name != "at most" else "" for name, column in columns.items()]
    table(["", *columns], [*rows, ["peak", *sums]])


def _change(change: Change, besides: int) -> dict[str, Any]:
    return {"flags": change.flags, "bytes": change.bytes + besides, "fits": change.fits}
