"""Kernels beside each other, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from lmf import Kernel, LmfError
from lmf.training.parts import PLAIN

from .cases import Case
from .measure import Limits, Row, failure, measure
from .steps import COUNT, measure_step, steppers


def rows_of(
    case: Case,
    kernels: Sequence[Kernel],
    device: torch.device,
    dtype: torch.dtype,
    known: Limits,
    compiling: bool = True,
    plain: bool = True,
) -> Iterator[Row]:
    """Measure a case by its formula, by its definition, and by the kernels of its part that can run here.

    Args:
        case: What is measured.
        kernels: The kernels.
        device: Where.
        dtype: In which precision.
        known: What the device does at most.
        compiling: Whether formulas are compiled by ``torch.compile``, too.
        plain: Whether formulas and definitions are measured.

    Yields:
        The part, the case, who computes it, the bytes and FLOPs of both passes, and the figures of ``measure``.
    """
    for name, load in _contenders(case, kernels, compiling, plain):
        try:
            function = load()
            if not callable(function):
                raise LmfError(f"transformers computes it, as {function!r}")
            row = measure(case, function, device, dtype, known)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        except Exception as error:  # of any type: it is a plugin's, or a kernel before it broke the device
            row = failure(error)
        what = {"part": case.part, "case": case.name, "by": name}
        yield {**what, "moved": [each * dtype.itemsize for each in case.moved], "flops": list(case.flops), **row}
    torch.compiler.reset()  # what was compiled for these sizes: after some recompilations torch compiles no more


def steps_of(device: torch.device, known: Limits, ours: bool, count: int = COUNT) -> Iterator[Row]:
    """Measure steps of AdamW; ``ours`` tells whether our kernels can run here."""
    for stepper in steppers(ours):
        row = measure_step(stepper, device, known, count)
        yield {"part": "adamw", "case": f"{count:,} parameters", "by": stepper.name, **row}


def _contenders(
    case: Case, kernels: Sequence[Kernel], compiling: bool, plain: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    if case.eager and plain:
        yield "torch", lambda: case.formula
        if compiling:
            yield "torch.compile", lambda: torch.compile(case.formula, dynamic=False)
    if plain:
        yield "plain", lambda: getattr(PLAIN, case.part)
    for kernel in kernels:
        if kernel.part == case.part and kernel.reason() is None:
            yield kernel.name, kernel.load


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a table: microseconds, and the shares of what the device does at most."""
    last = None
    for row in rows:
        if (row["part"], row["case"]) != last:
            last = row["part"], row["case"]
            yield f"\n{row['part']}, {row['case']}"
            yield f"{'':36}{'error':>9}{'forward':>13}{'of limit':>9}{'backward':>13}{'of limit':>9}{'MB':>9}"
        yield f"  {row['by']:34}{_cells(row)}"


def _cells(row: Row) -> str:
    if "why" in row:
        return f" {row['why']}"
    error = f"{row['error']:9.1e}"
    memory = f"{'-':>9}" if row.get("memory") is None else f"{row['memory'] / 1e6:9,.0f}"
    if "both" in row:
        return f"{error}{'':>13}{'both':>9}{_micro(row['both'])}{row['both share']:9.0%}{memory}"
    back = f"{_micro(row['backward'])}{row['backward share']:9.0%}" if "backward" in row else f"{'-':>13}{'-':>9}"
    return f"{error}{_micro(row['forward'])}{row['forward share']:9.0%}{back}{memory}"


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:10,.1f} us"
