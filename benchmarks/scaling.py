"""How cost grows: with the length of documents, the size of the model, and the number of records.

Usage: scaling.py [--quick] [--results FOLDER] [--report]

On the CPU, in fp32, with random weights:

- length: a step of full fine-tuning on 128 to 8192 tokens in one row, as one document and as documents of 128;
  the second has the same work in all but attention
- size: a step of full, LoRA and LISA (2 layers) on 128 tokens, for models of 9 million to 1 billion parameters;
  what the forecast says does not fit in the memory that is free is left out
- records: a run on 1000 to a million short records, read first and streamed, each in a fresh process: seconds and
  memory from before the data is looked at until the first step is done, and seconds of a later step

A step is the fastest of several after the first three, for others are slowed down by whatever else the machine does.
Its memory is that of its tensors, counted as ``lmf profile memory`` does; that of a run is the highest resident set
(Linux). A curve is cost = c * x^e; e is fitted to all of its points, and taken between neighbours. Where it is more
than it should be, the report says so.

Every point is written when it is measured: started again, the command goes on where it was. --report only makes the
table and the plot anew. All of it takes some 15 minutes on two quiet cores, --quick three.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
DOCUMENT = 128  # tokens
TOKENS = 128  # of a step where the size of the model varies
# layers and width; about 12 * layers * width^2 parameters
SIZES = ((10, 256), (10, 512), (16, 768), (24, 1152), (24, 1856))
RECORDS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
WARMUP = 3  # steps in which a process gets the memory that it then keeps; that takes longer than the step itself
STEPS = 20  # of a run on records
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"rank": 8, "target": ["all-linear"]},
    "lisa": {"train_embeddings": False, "train_head": False, "train_norm": False},
}
MARGIN = 0.15  # a slope that is steeper by so much is told
FLOOR = 0.02  # seconds; what takes less is overhead and noise
ROOM = 2**30  # bytes to leave free

Point = dict[str, float]  # x, and what was measured there by its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What is measured along one axis.

    Attributes:
        name: Its name in the results.
        axis: What x is.
        xs: Where it is measured.
        measure: Measures a point: x, or the reason why it cannot be.
        slopes: For each figure, the exponent that it should have at most.
    """

    name: str
    axis: str
    xs: Sequence[Any]
    measure: Callable[[Any], Point | str]
    slopes: Mapping[str, float]


def curves(quick: bool) -> list[Curve]:
    """Return everything that is measured, the cheap ones first."""
    lengths, sizes, records = (LENGTHS[:5], SIZES[:3], RECORDS[:4]) if quick else (LENGTHS, SIZES, RECORDS)
    step = {"seconds": 1.0, "bytes": 1.0}
    found = [
        Curve(
            name=f"length, documents of {DOCUMENT}",
            axis="tokens",
            xs=lengths,
            measure=lambda tokens: _length([DOCUMENT] * (tokens // DOCUMENT)),
            slopes=step,
        ),
        Curve(
            name="length, one document",
            axis="tokens",
            xs=lengths,
            measure=lambda tokens: _length([tokens]),
            slopes={"seconds": 2.0, "bytes": 1.0},
        ),
    ]
    run = {"seconds to the first step": 1.0, "bytes to the first step": 1.0, "seconds a step": 0.0}
    constant = dict.fromkeys(run, 0.0)
    for name, streamed in (("records, read", False), ("records, streamed", True)):
        measure = lambda count, streamed=streamed: _records(count, streamed)  # noqa: E731
        slopes = constant if streamed else run
        found.append(Curve(name=name, axis="records", xs=records, measure=measure, slopes=slopes))
    for method in METHODS:
        measure = lambda size, method=method: _size(method, *size)  # noqa: E731
        found.append(Curve(name=f"size, {method}", axis="parameters", xs=sizes, measure=measure, slopes=step))
    return found


# Steps, in this process


def _length(lengths: Sequence[int]) -> Point | str:
    """Measure a step of full fine-tuning of a small model."""
    point = _step("full", *SIZES[0], lengths)
    return point if isinstance(point, str) else point | {"x": sum(lengths)}


def _size(method: str, layers: int, width: int) -> Point | str:
    """Measure a step of a method, if the model fits."""
    return _step(method, layers, width, [TOKENS])


def _step(method: str, layers: int, width: int, lengths: Sequence[int]) -> Point | str:
    import torch
    from lmf.memory.forecast import Work, forecast
    from synthetic import Run, Shape, batch, plan

    inside, heads = 64 * round(2.75 * width / 64), width // 64
    shape = Shape(layers=layers, width=width, inside=inside, heads=heads, keys=heads, vocabulary=2048)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        planned = plan(shape, Path(folder), method, METHODS[method], dtype="float32")
        work = Work(batches=(tuple((length, length - 1) for length in lengths),), later=False, steps=2)
        need, free = forecast(planned, device, work).usage.total, _free()
        if need + ROOM > free:
            return f"needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        run = Run(planned, device)
    row = batch(lengths, shape.vocabulary, device)
    for _ in range(WARMUP):
        run.step(0, row)
    seconds: list[float] = []
    while (len(seconds) < 5 and sum(seconds) < 30) or (len(seconds) < 20 and sum(seconds) < 2):
        start = time.perf_counter()
        run.step(0, row)
        seconds.append(time.perf_counter() - start)
    return {
        "x": float(sum(p.numel() for p in run.model.parameters())),
        "seconds": min(seconds),
        "bytes": float(run.count(0, row).usage.total),
    }


def _free() -> int:
    """Return the bytes of memory that can be had."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


# Runs, each in a process of its own


def _records(count: int, streamed: bool) -> Point | str:
    arguments = [sys.executable, __file__, "--run", str(count), str(int(streamed))]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        return f"the run ended with status {done.returncode}"
    return json.loads(done.stdout.splitlines()[-1])


def run(count: int, streamed: bool) -> None:
    """Train on so many records, and print the point."""
    from lmf import Plugins, RunSettings
    from lmf.plan import make_plan
    from lmf.report import Reporter
    from lmf.testing import tiny_checkpoint
    from lmf.training.loop import train
    from transformers.utils import logging

    class Watch(Reporter):
        """Notes when steps are done, and the highest resident set at the first of them."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.peak = 0

        def step(self, entry: Mapping[str, Any]) -> None:
            self.times.append(time.perf_counter())
            self.peak = self.peak or _resident("VmHWM")

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = tiny_checkpoint(folder / "model")
        with (folder / "records.jsonl").open("w", encoding="utf-8") as lines:
            for number in range(count):
                said = [("user", f"what is {number} and {number % 97}"), ("assistant", f"the answer is {number % 89}")]
                record = {"messages": [{"role": role, "content": content} for role, content in said]}
                lines.write(json.dumps(record) + "\n")
        plugins, watch = Plugins(), Watch()
        settings = RunSettings(
            model=str(model),
            data=(str(folder / "records.jsonl"),),
            output=folder / "out",
            template="chatml",
            steps=STEPS,
            dtype="float32",
            max_tokens=512,
            streaming=streamed,
            shuffle_buffer=min(RECORDS),  # what is read before the first step
            cache=False,
            save_every=STEPS,
        )
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident set so far
        before, start = _resident("VmRSS"), time.perf_counter()
        train(make_plan(plugins, "train", "full", settings), watch)
    later = [after - earlier for earlier, after in zip(watch.times[4:-2], watch.times[5:-1], strict=True)]
    point = {
        "x": count,
        "seconds to the first step": watch.times[0] - start,
        "bytes to the first step": watch.peak - before,
        "seconds a step": statistics.median(later),
    }
    print(json.dumps(point))


def _resident(what: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


# What was found


class Results:
    """The file of results."""

    def __init__(self, file: Path):
        self.file = file
        versions = {name: version(name) for name in ("lmf-core", "torch", "transformers")}
        self.found: dict[str, Any] = {
            "date": str(date.today()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "versions": versions,
            "load": [],
            "points": {},
        }
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["versions"] == versions:  # others are measured anew
                self.found = found

    def fill(self, curve: Curve) -> None:
        """Measure the points of a curve that are not there."""
        points = self.found["points"].setdefault(curve.name, {})
        for x in curve.xs:
            if isinstance(points.get(str(x)), dict):
                continue
            points[str(x)] = point = curve.measure(x)
            self.found["load"].append(round(os.getloadavg()[0], 2))
            print(f"{curve.name}: {x}: {point}", file=sys.stderr, flush=True)
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.file)

    def points(self, curve: Curve) -> list[Point]:
        """Return the points of a curve that could be measured."""
        points = self.found["points"].get(curve.name, {})
        return [points[str(x)] for x in curve.xs if isinstance(points.get(str(x)), dict)]

    def missing(self, curve: Curve) -> Iterator[str]:
        """Yield why points are missing."""
        points = self.found["points"].get(curve.name, {})
        for x in curve.xs:
            if not isinstance(points.get(str(x)), dict):
                yield f"{x}: {points.get(str(x), 'not measured yet')}"


def exponent(points: Sequence[Point], figure: str) -> float:
    """Return e of the curve figure = c * x^e that is nearest to the points, in logarithms."""
    xs, ys = ([math.log(point[name]) for point in points] for name in ("x", figure))
    return statistics.linear_regression(xs, ys).slope


def local_exponents(points: Sequence[Point], figure: str) -> list[float]:
    """Return e between each point and the next."""
    return [exponent([left, right], figure) for left, right in itertools.pairwise(points)]


def surprises(curve: Curve, points: Sequence[Point]) -> Iterator[str]:
    """Yield where a figure grows faster than it should."""
    for figure, most in curve.slopes.items():
        for (left, right), slope in zip(itertools.pairwise(points), local_exponents(points, figure), strict=True):
            if slope > most + MARGIN and not (figure.startswith("seconds") and right[figure] < FLOOR):
                yield (
                    f"{curve.name}: {figure} from {left['x']:,.0f} to {right['x']:,.0f} {curve.axis}: "
                    f"exponent {slope:.2f}, at most {most:g} was expected"
                )


def table(results: Results, found: Sequence[Curve]) -> str:
    """Return the figures, their exponents, and what is surprising."""
    head = results.found
    load = head["load"] or [0]
    lines = [
        f"{head['date']}, {head['machine']}, load {min(load)} to {max(load)}",
        ", ".join(f"{name} {number}" for name, number in head["versions"].items()),
    ]
    told: list[str] = []
    for curve in found:
        points = results.points(curve)
        lines += ["", curve.name]
        lines += [f"  left out: {reason}" for reason in results.missing(curve)]
        if len(points) < 2:
            continue
        told += surprises(curve, points)
        lines.append(f"  {curve.axis:28}" + "".join(f"{point['x']:>12,.0f}" for point in points))
        for figure in curve.slopes:
            local = "".join(f"{slope:>12.2f}" for slope in local_exponents(points, figure))
            lines.append(f"  {figure:28}" + "".join(f"{_shown(figure, point[figure]):>12}" for point in points))
            lines.append(f"  {f'  exponent {exponent(points, figure):5.2f}':28}{'':12}{local}")
    lines += ["", *(told or ["Nothing grows faster than it should."])]
    return "\n".join(lines)


def plot(results: Results, found: Sequence[Curve], file: Path) -> None:
    """Draw every figure over its axis, with the fitted exponents in the legend."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("The plot needs matplotlib: pip install lmf-cli[plot]. The figures are measured; then give --report.")
    axes = list(dict.fromkeys(curve.axis for curve in found))
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, len(axes))
    for column, axis in enumerate(axes):
        for row, unit in enumerate(("seconds", "bytes")):
            panel = panels[row][column]
            for curve in found:
                points = results.points(curve)
                if curve.axis != axis or len(points) < 2:
                    continue
                for name in curve.slopes:
                    if name.startswith(unit):
                        scale = 1 if unit == "seconds" else 1e9
                        ys = [point[name] / scale for point in points]
                        what = f"{curve.name.split(', ')[1]}{name.removeprefix(unit)}: {exponent(points, name):.2f}"
                        panel.loglog([point["x"] for point in points], ys, "o-", markersize=3, label=what)
            panel.set(xlabel=axis, ylabel="seconds" if unit == "seconds" else "GB")
            panel.grid(alpha=0.3)
            panel.xaxis.set_minor_formatter("")
            if panel.lines:
                panel.legend(fontsize=8, title="fitted exponent", title_fontsize=8)
    figure.savefig(file, dpi=70)


def _shown(figure: str, number: float) -> str:
    return f"{number:.4g}" if figure.startswith("seconds") else f"{number / 1e6:,.1f} MB"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How cost grows with length, model size and records.")
    parser.add_argument("--quick", action="store_true", help="only the small end of every curve")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the results")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args(arguments)
    given.results.mkdir(parents=True, exist_ok=True)
    name = "scaling-quick" if given.quick else "scaling"
    results, found = Results(given.results / f"{name}.json"), curves(given.quick)
    if not given.report:
        for curve in found:
            results.fill(curve)
    text = table(results, found)
    (given.results / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    plot(results, found, given.results / f"{name}.png")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(int(sys.argv[2]), bool(int(sys.argv[3])))
    else:
        main()
