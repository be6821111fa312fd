"""How right a function is, how long it takes, and what memory it needs."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lmf.training.parts import ALLOWED, differences

from .cases import Case, Random

Row = dict[str, Any]
CHECKED = 1024  # tokens, at most, that are compared with float64
WARM, FEWEST, MOST = 3, 5, 100  # calls that are not timed, and that are
SECONDS = 0.4  # for the calls of one function
FLUSHED = 2**30  # bytes that are written before each call: nothing is left in a cache, and calls queue up meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a device does at most, measured.

    Attributes:
        bandwidth: Bytes a second that a copy reads and writes.
        rate: FLOP/s of a product of matrices.
    """

    bandwidth: float
    rate: float

    def least(self, moved: float, flops: float) -> float:
        """Return the seconds that moving bytes and computing take at least."""
        return max(moved / self.bandwidth, flops / self.rate)


def limits(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Limits:
    """Measure what a device does at most; ``quick`` with little memory, for tests."""
    count, side = (2**20, 128) if quick else (2**29, 8192)
    return Limits(bandwidth=2 * count / _copying(count, device), rate=2 * side**3 / _multiplying(side, device, dtype))


def _copying(count: int, device: torch.device) -> float:
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return statistics.median(timed(lambda: target.copy_(source), device)[0])


def _multiplying(side: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return statistics.median(timed(lambda: a @ b, device)[0])


def measure(case: Case, function: Callable[..., Any], device: torch.device, dtype: torch.dtype, known: Limits) -> Row:
    """Return the figures of a function: first how far it is from the formula in float64, then times.

    A function that fails, or is wrong, gets no times but the reason, under ``why``.
    """
    try:
        error = _error(case, function, device, dtype)
        if not error <= ALLOWED[dtype]:
            return {"error": error, "why": f"wrong: {error:.1e} from float64"}
        return {"error": error, **_figures(case, function, device, dtype, known)}
    except Exception as error:  # of any type: a kernel of a plugin raises what it likes
        return failure(error)


def failure(error: Exception) -> Row:
    """Return a row that says why there are no figures."""
    return {"why": " ".join(f"{type(error).__name__}: {error}".split())[:200]}


def _error(case: Case, function: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest difference of a result or a gradient, relative to it."""
    with poisoned(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not deterministic; others' kernels warn of what they like
        inputs, options = case.make(Random(device, dtype), CHECKED)
        return max(differences(function, case.formula, inputs, options, torch.float64).values())


def _figures(case: Case, function: Callable[..., Any], device: torch.device, dtype: torch.dtype, known: Limits) -> Row:
    inputs, options = case.make(Random(device, dtype), 2**62)
    learned = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    slopes: list[torch.Tensor] = []

    def forward() -> list[torch.Tensor]:
        result = function(*inputs, **options)
        return list(result) if isinstance(result, tuple) else [result]

    def backward(outputs: list[torch.Tensor]) -> Any:
        if not slopes:  # random ones, for multiplying equal numbers takes less power, and so less time
            slopes.extend(torch.randn_like(each) for each in outputs)
        return torch.autograd.grad(outputs, learned, slopes)

    ahead, back = timed(forward, device, backward)
    row: Row = {"memory": _memory(lambda: backward(forward()), device)}
    moved = [each * dtype.itemsize for each in case.moved]
    if case.together:
        row["both"] = statistics.median(map(sum, zip(ahead, back, strict=True)))
        return row | {"both share": known.least(sum(moved), sum(case.flops)) / row["both"]}
    for way, seconds, bytes, flops in zip(("forward", "backward"), (ahead, back), moved, case.flops, strict=True):
        row[way] = statistics.median(seconds)
        row[f"{way} share"] = known.least(bytes, flops) / row[way]
    return row


def timed(
    first: Callable[[], Any], device: torch.device, second: Callable[[Any], Any] | None = None
) -> tuple[list[float], list[float]]:
    """Return the seconds of calls of a function, and of one that gets what it returned, each from empty caches."""
    cuda = device.type == "cuda"
    room = min(FLUSHED, torch.cuda.get_device_properties(device).total_memory // 16) if cuda else 0
    flushed = torch.empty(room, dtype=torch.uint8, device=device)
    times: tuple[list[float], list[float]] = ([], [])
    end = 0.0
    for number in range(WARM + MOST):
        if number == WARM:
            end = time.perf_counter() + SECONDS
        if number >= WARM + FEWEST and time.perf_counter() > end:
            break
        flushed.zero_()
        start = _mark(device)
        result = first()
        marks = [(start, _mark(device))]
        if second:
            flushed.zero_()
            start = _mark(device)
            second(result)
            marks.append((start, _mark(device)))
        del result
        if cuda:
            torch.cuda.synchronize(device)
        if number >= WARM:
            for seconds, (start, stop) in zip(times, marks, strict=False):
                seconds.append(start.elapsed_time(stop) / 1e3 if cuda else stop - start)
    return times


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Return the bytes that a call needs beside its arguments; None where torch does not count them."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Have torch fill with NaN what it gives out: a result that is not written shows."""
    wanted = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills memory, too
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted[0], warn_only=wanted[1])
