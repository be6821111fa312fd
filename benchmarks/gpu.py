"""LMF on one GPU: what a step takes of memory and of time, beside the LISA paper and beside arithmetic.

Usage: gpu.py [--suite e2e|kernels|attn] [--shape NAME ...] [--device cuda|cpu] [--minutes N] [--results FOLDER]
       gpu.py --forecast [--shape NAME ...] [--results FOLDER]

Suite e2e takes models with random weights and measures, for each method,

- memory of a step on one document of 1024 tokens: what torch gave out at most (allocated, reserved), and what
  it is for, counted in one more step by the accountant of ``lmf profile memory``; in the setting of the paper,
  where nothing is recomputed, and in two of ours that save memory
- tokens/s on four documents of 2048 tokens in one row, the median of 20 steps after 5, and the share of what
  the device could do if it did nothing but the multiplications that the method needs, at its peak rate
- whether LISA's memory grows over 200 switches

and says which targets are met. Suites kernels and attn are in kernel_suites.py. Each ends within --minutes: what is
left then is skipped, and the table says so.
``--shape tiny --device cpu`` goes through all of it on a CPU, and its figures mean nothing. ``--forecast`` writes
the memory table as ``lmf plan`` forecasts it, which needs no GPU and some minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import kernel_suites
import torch
from lmf import LmfError
from lmf.memory.forecast import Work, forecast
from lmf.memory.ledger import Peak, Usage
from synthetic import Run, Shape, batch, plan, work

Row = dict[str, Any]

HERE = Path(__file__).parent
SHAPES = {
    "tiny": Shape(layers=4, width=64, inside=128, heads=4, keys=2, vocabulary=300, positions=128),
    "llama-2-7b": Shape(layers=32, width=4096, inside=11008, heads=32, keys=32, vocabulary=32000),
    "llama-3-8b": Shape(layers=32, width=4096, inside=14336, heads=32, keys=8, vocabulary=128256),
}
# dense bfloat16 with sums in 32 bits, FLOP/s; the first name that is in the device's name
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}

ALONE, TOGETHER, DOCUMENTS = 1024, 2048, 4  # tokens of a document: for memory, and of four in a row for speed
WARM, TIMED = 5, 20  # steps
DRAWS = 20  # intervals of LISA, of which the one that trains the lowest layer is measured
SWITCHES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A method to measure.

    Attributes:
        name: What the tables call it.
        method: Name of the tuning method.
        options: Its options.
        paper: GB for Llama-2-7B in figure 3 of the LISA paper (arXiv:2403.17919), where it is there.
        timed: Whether its speed is measured.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    timed: bool = True


LAYERS_ONLY = {"train_embeddings": False, "train_head": False, "train_norm": False}
CASES = (
    Case(name="full", method="full", paper=59),
    Case(name="LoRA r16", method="lora", options={"rank": 16, "target": ["all-linear"]}),
    Case(name="LoRA r128", method="lora", options={"rank": 128, "target": ["all-linear"]}, paper=23),
    Case(name="E+H", method="freeze", options={"modules": ["embed_tokens", "lm_head"]}, paper=21, timed=False),
    Case(name="LISA E+H+2L", method="lisa", options={"interval": 1}, paper=23),
    Case(name="LISA 2L", method="lisa", options={"interval": 1, **LAYERS_ONLY}),
)
PAPER, OURS, OURS_8 = "nothing recomputed", "recomputed, stepped in backward", "the same with 8-bit state"
SAVING = {"gradient_checkpointing": True, "step_in_backward": True, "clip": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    PAPER: {},
    OURS: SAVING,
    OURS_8: {**SAVING, "optimizer": "adamw-8bit"},
}
STOCK = "peft LoRA r16"  # without lmf


class Out(Exception):
    """There is no time left."""


class Clock:
    """How much time is left."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    def over(self) -> bool:
        return time.monotonic() > self._end

    def check(self) -> None:
        if self.over():
            raise Out("skipped: the time is up")


@dataclass(slots=True)
class Bench:
    """Where and what is measured.

    Attributes:
        device: The device.
        shapes: Names of the models.
        clock: The time that is left.
        rows: What was measured so far.
        folder: A place for configurations.
        partial: Where rows of kernels are kept until the suite has ended.
    """

    device: torch.device
    shapes: Sequence[str]
    clock: Clock
    folder: Path
    partial: Path
    rows: list[Row] = field(default_factory=list)

    def run(self, shape: str, case: Case, settings: Mapping[str, Any], **options: Any) -> Run:
        dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        given = {**case.options, **options}
        return Run(plan(SHAPES[shape], self.folder, case.method, given, dtype=dtype, **settings), self.device)

    def add(self, measure: Callable[[], Row], **what: Any) -> Row:
        """Measure a row and print it; a row that cannot be measured has the reason under ``why``."""
        try:
            self.clock.check()
            row = what | measure()
        except torch.OutOfMemoryError:
            row = what | {"why": "out of memory"}
        except (LmfError, Out) as error:
            row = what | {"why": str(error)}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.rows.append(row)
        print(*what.values(), row.get("why", "done"), sep=", ", file=sys.stderr, flush=True)
        return row

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows and print them, as long as there is time."""
        found = iter(rows)
        while not self.clock.over() and (row := next(found, None)) is not None:
            self.rows.append(row)
            print(*list(row.values())[:3], row.get("why", "done"), sep=", ", file=sys.stderr, flush=True)
            self.partial.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")

    def missing(self) -> str:
        """Return what a table must say if the time was up."""
        return "\n\nThe time was up: what is missing was not measured." * self.clock.over()


def end_to_end(bench: Bench) -> str:
    """Measure whole steps. Returns the tables."""
    for shape in bench.shapes:
        for case in CASES:
            if case.timed:
                bench.add(lambda c=case, s=shape: speed(bench, s, c), part="speed", shape=shape, case=case.name)
        bench.add(lambda s=shape: stock_speed(bench, s), part="speed", shape=shape, case=STOCK)
        for name, settings in SETTINGS.items():
            for case in CASES:
                bench.add(
                    lambda c=case, s=shape, given=settings: memory(bench, s, c, given),
                    part="memory",
                    shape=shape,
                    setting=name,
                    case=case.name,
                )
    bench.add(lambda: switches(bench, bench.shapes[0]), part="switches", shape=bench.shapes[0], case="LISA E+H+2L")
    return "\n".join([*memory_tables(bench.rows), *speed_tables(bench.rows), *target_table(bench.rows)])


def memory(bench: Bench, shape: str, case: Case, settings: Mapping[str, Any]) -> Row:
    """Return the bytes that a step takes once the optimizer has its state."""
    run = bench.run(shape, case, settings)
    document = batch([_length(shape, ALONE)], SHAPES[shape].vocabulary, bench.device)
    at = run.deepest(DRAWS)
    cuda = bench.device.type == "cuda"
    if cuda:  # what loading needed is over
        gc.collect()
        torch.cuda.empty_cache()
    run.step(at, document)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    run.step(at, document)
    taken: Row = {"allocated": None, "reserved": None}
    if cuda:
        taken = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    peak = run.count(at, document)
    return taken | _counted(peak)


def speed(bench: Bench, shape: str, case: Case) -> Row:
    """Return tokens/s, with what saves memory only where it must be."""
    try:
        return _speed(bench, shape, case, {})
    except torch.OutOfMemoryError:
        pass  # its tensors die with the exception
    gc.collect()
    torch.cuda.empty_cache()
    return _speed(bench, shape, case, SAVING) | {"setting": OURS}


def _speed(bench: Bench, shape: str, case: Case, settings: Mapping[str, Any]) -> Row:
    intervals = {"interval": 4} if case.method == "lisa" else {}  # several draws among the steps that are timed
    run = bench.run(shape, case, settings, **intervals)
    lengths = DOCUMENTS * [_length(shape, TOGETHER)]
    row = batch(lengths, SHAPES[shape].vocabulary, bench.device)
    peak = next((rate for name, rate in PEAKS.items() if name in _name(bench.device)), None)

    def limit() -> float | None:
        return sum(work(run, lengths, len(row.index))) / peak if peak else None

    return _timed(bench, sum(lengths), lambda number: run.step(number, row), limit)


def _timed(bench: Bench, tokens: int, step: Callable[[int], Any], limit: Callable[[], float | None]) -> Row:
    """Time steps. ``limit`` returns the seconds that the last one would take at the peak rate."""
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, shares = [], []
    for number in range(WARM + TIMED):
        bench.clock.check()
        start = time.perf_counter()
        step(number)
        took = time.perf_counter() - start
        if number >= WARM:
            seconds.append(took)
            if least := limit():
                shares.append(least / took)
    return {
        "tokens/s": tokens / statistics.median(seconds),
        "share": statistics.median(shares) if shares else None,
        "slowest": max(seconds),
        "allocated": torch.cuda.max_memory_allocated() if cuda else None,
    }


def stock_speed(bench: Bench, shape: str) -> Row:
    """Return tokens/s of LoRA as one does it without lmf: peft, SDPA, the model's own loss, torch's fused AdamW."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with bench.device:
        base: Any = AutoModelForCausalLM.from_config(SHAPES[shape].config(), attn_implementation="sdpa")
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by an old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    ids = torch.randint(SHAPES[shape].vocabulary, (DOCUMENTS, _length(shape, TOGETHER)), device=bench.device)

    def step(_: int) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        torch.stack([loss.detach().to(norm), norm]).tolist()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(bench, ids.numel(), step, lambda: None)


def switches(bench: Bench, shape: str) -> Row:
    """Return the bytes of LISA's state, and the most that steps took, before and after switches of its layers."""
    case = next(case for case in CASES if case.name == "LISA E+H+2L")
    run = bench.run(shape, case, {})
    short = batch([64], SHAPES[shape].vocabulary, bench.device)
    states, peaks = {}, []
    half, cuda = SWITCHES // 2, bench.device.type == "cuda"
    for number in range(SWITCHES + 1):
        bench.clock.check()
        if cuda and number in (1, half + 1):
            torch.cuda.reset_peak_memory_stats()
        run.step(number, short)
        if number in (0, half, SWITCHES):
            states[number] = run.state()
        if cuda and number in (half, SWITCHES):
            peaks.append(torch.cuda.max_memory_allocated())
    return {"state": states, "allocated": peaks}


# Tables


PARTS = [part.name for part in dataclasses.fields(Usage)]
TOTALS = ("counted", "allocated", "reserved")  # all kinds together at the peak; by torch; with what it keeps free


NOTE = """
Trained weights are in float32, frozen ones in bfloat16. The paper has all of them in bfloat16, which LMF does not.
E+H, which LISA has not without a layer, is freeze --modules embed_tokens,lm_head.
LISA is taken when it trains the lowest layer of {draws} draws: without the embeddings, the backward pass ends there."""


def memory_tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the memory tables, one for each model and setting."""
    yield NOTE.format(draws=DRAWS)
    found = [row for row in rows if row["part"] == "memory"]
    papers = {case.name: case.paper for case in CASES}
    for shape, setting in dict.fromkeys((row["shape"], row["setting"]) for row in found):
        yield f"\n{shape}, one document of {_length(shape, ALONE):,} tokens, {setting}: GB, each kind at its most\n"
        columns = [name for name in (*PARTS, *TOTALS) if any(row.get(name) is not None for row in found)]
        yield f"{'':14}" + "".join(f"{name:>13}" for name in [*columns, "paper"])
        for row in found:
            if (row["shape"], row["setting"]) == (shape, setting):
                paper = papers[row["case"]] if (shape, setting) == ("llama-2-7b", PAPER) else None
                cells = [_gb(row.get(name)) for name in columns] + [_number(paper, 0)]
                yield f"{row['case']:14}" + (row.get("why") or "".join(f"{cell:>13}" for cell in cells))


def speed_tables(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the speed tables, one for each model, and what the switches did."""
    found = [row for row in rows if row["part"] == "speed"]
    for shape in dict.fromkeys(row["shape"] for row in found):
        yield f"\n{shape}, {DOCUMENTS} documents of {_length(shape, TOGETHER):,} tokens in one row\n"
        yield f"{'':14}{'tokens/s':>12}{'of limit':>12}{'allocated':>12}"
        for row in found:
            if row["shape"] == shape:
                cells = [_number(row.get("tokens/s"), 0), _percent(row.get("share")), _gb(row.get("allocated"))]
                why = row.get("why") or "".join(f"{cell:>12}" for cell in cells)
                yield f"{row['case']:14}{why}" + (f"  {row['setting']}" if "setting" in row else "")
    for row in rows:
        if row["part"] == "switches":
            yield f"\n{row['shape']}, {row['case']}, new layers in every step: " + (row.get("why") or "")
            for step, size in row.get("state", {}).items():
                yield f"after {step} switches the optimizer's state has {size:,} bytes"
            if row.get("allocated"):
                first, second = row["allocated"]
                yield f"most allocated in the first half {first:,} bytes, in the second {second:,}"


def target_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what was aimed at, and what is."""

    def value(key: str, **what: str) -> float | None:
        return next((row[key] for row in rows if what.items() <= row.items() and row.get(key)), None)

    def rate(case: str) -> float | None:
        return value("tokens/s", part="speed", shape="llama-2-7b", case=case)

    def size(case: str, setting: str, shape: str = "llama-2-7b") -> float | None:
        what = {"part": "memory", "shape": shape, "case": case, "setting": setting}
        found = value("allocated", **what) or value("counted", **what)
        return found and found / 1e9

    def ratio(top: float | None, bottom: float | None) -> float | None:
        return top / bottom if top and bottom else None

    lisa, layers, lora, full = (rate(name) for name in ("LISA E+H+2L", "LISA 2L", "LoRA r16", "full"))
    stock = rate(STOCK)
    smallest = [size(name, OURS_8, "llama-3-8b") for name in ("LISA E+H+2L", "LISA 2L", "LoRA r16")]
    halves = value("allocated", part="switches", shape="llama-2-7b")
    grown = ratio(*reversed(halves)) if isinstance(halves, list) and len(halves) == 2 else None
    # what it is, the figure, the target, whether the figure must be at least that
    targets = [
        ("LISA E+H+2L, tokens/s", lisa, 14000, True),
        ("LISA E+H+2L / full, tokens/s", ratio(lisa, full), 1.40, True),
        ("LISA 2L, tokens/s", layers, 17000, True),
        ("LISA 2L / full, tokens/s", ratio(layers, full), 1.65, True),
        (f"LISA E+H+2L / {STOCK}, tokens/s", ratio(lisa, stock), 1.15, True),
        (f"LoRA r16 / {STOCK}, tokens/s", ratio(lora, stock), 1.25, True),
        ("full, tokens/s", full, 9500, True),
        ("full, GB, recomputed, stepped in backward", size("full", OURS), 110, False),
        ("LISA E+H+2L, GB, nothing recomputed", size("LISA E+H+2L", PAPER), 20.8, False),
        ("LISA E+H+2L, GB, recomputed, 8-bit state", size("LISA E+H+2L", OURS_8), 18.2, False),
        ("llama-3-8b: LISA E+H+2L / LoRA r16, memory", ratio(smallest[0], smallest[2]), 1.40, False),
        ("llama-3-8b: LISA 2L / LoRA r16, memory", ratio(smallest[1], smallest[2]), 1.15, False),
        (f"second / first {SWITCHES // 2} switches, memory", grown, 1.01, False),
    ]
    yield "\nof llama-2-7b where no other is named"
    yield from kernel_suites.target_lines(targets)


def forecast_table(shapes: Sequence[str]) -> str:
    """Return the memory tables as ``lmf plan`` would have them, without a GPU."""
    rows = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes:
            for name, settings in SETTINGS.items():
                for case in CASES:
                    length = _length(shape, ALONE)
                    document = Work(batches=(((length, length - 1),),), later=False, steps=DRAWS)
                    row: Row = {"part": "memory", "shape": shape, "setting": name, "case": case.name}
                    planned = plan(SHAPES[shape], Path(folder), case.method, case.options, dtype="bfloat16", **settings)
                    try:
                        row |= _counted(forecast(planned, device, document))
                    except LmfError as error:
                        row["why"] = str(error)
                    print(shape, name, case.name, row.get("why", "done"), sep=", ", file=sys.stderr, flush=True)
                    rows.append(row)
    targets = [line for line in target_table(rows) if "not measured" not in line]
    return "\n".join([f"FORECAST, not measured, as for a {device.type}", *memory_tables(rows), *targets])


def _counted(peak: Peak) -> Row:
    return {"counted": peak.usage.total, **dataclasses.asdict(peak.most), "at peak": dataclasses.asdict(peak.usage)}


def _length(shape: str, tokens: int) -> int:
    return min(tokens, SHAPES[shape].positions)


def _gb(number: float | None) -> str:
    return "-" if number is None else f"{number / 1e9:.2f}" if number >= 1e7 or not number else f"{number / 1e9:.1g}"


def _number(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:,.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} missing"


# The command


def kernels(bench: Bench) -> str:
    """Measure the parts of models. Returns the tables."""
    return kernel_suites.kernels(bench.device, bench.shapes == ["tiny"], bench.extend, bench.rows) + bench.missing()


def attn(bench: Bench) -> str:
    """Measure attention. Returns the tables."""
    return kernel_suites.attn(bench.device, bench.shapes == ["tiny"], bench.extend, bench.rows) + bench.missing()


SUITES: dict[str, Callable[[Bench], str]] = {"e2e": end_to_end, "kernels": kernels, "attn": attn}


def header(device: torch.device) -> str:
    packages = (
        "lmf-core",
        "torch",
        "triton",
        "transformers",
        "peft",
        "bitsandbytes",
        "liger-kernel",
        "cut-cross-entropy",
    )
    where = f"{_name(device)}, CUDA {torch.version.cuda}" if device.type == "cuda" else f"{_name(device)}, no GPU"
    return f"{date.today()}, {where}, Python {platform.python_version()}\n" + ", ".join(map(_version, packages))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memory and speed of LMF on one GPU.")
    parser.add_argument("--suite", choices=SUITES, default="e2e", help="what to measure")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["llama-2-7b", "llama-3-8b"], help="models")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where; cpu is for --shape tiny")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which nothing new is begun")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the results")
    parser.add_argument("--forecast", action="store_true", help="forecast the memory instead of measuring it")
    given = parser.parse_args(arguments)
    given.results.mkdir(parents=True, exist_ok=True)
    device = torch.device(given.device)
    if given.forecast:
        text = f"{header(torch.device('cpu'))}\n{forecast_table(given.shape)}\n"
        (given.results / "gpu-forecast.txt").write_text(text, encoding="utf-8")
        print(text)
        return
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} finds no GPU here. Run this where there is one, with a build of torch for it; "
            "or go through all of it on the CPU with --shape tiny --device cpu; or see --forecast."
        )
    if device.type == "cpu" and given.shape != ["tiny"]:
        sys.exit("--device cpu is too slow for these models; give --shape tiny with it.")
    name = f"{'gpu' if device.type == 'cuda' else 'cpu'}-{given.suite}"
    partial = given.results / f"{name}.partial.json"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, given.shape, Clock(given.minutes), Path(folder), partial)
        tables = SUITES[given.suite](bench)
    text = f"{header(device)}\n{tables}\n"
    found = {"header": header(device), "rows": bench.rows}
    (given.results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (given.results / f"{name}.txt").write_text(text, encoding="utf-8")
    partial.unlink(missing_ok=True)
    if given.suite != "e2e":
        kernel_suites.plot(given.suite, bench.rows, given.results / f"{name}.png")
    print(text)


if __name__ == "__main__":
    main()
