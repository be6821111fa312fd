"""The suites ``kernels`` and ``attn`` of gpu.py: every kernel that can run, beside others and beside the limits.

Suite kernels takes the norms, the gated unit, rotary positions, the loss and AdamW in the sizes of three models, 8192
tokens. Suite attn takes attention over 16384 tokens in heads of 64, 128 and 256: documents of one length from 512 to
16384, documents of 128 and of 1000 tokens on average, a window of 4096, and up to 8 heads of queries to one of keys.

Each result is compared with float64 first; who is wrong gets no time. What is measured, and how, is in
``lmf_kernels.bench``, which ``lmf bench kernels`` runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lmf import Plugins
from lmf_kernels import UNTRIED
from lmf_kernels.bench.cases import MODELS, Case, Sizes, attention, documents, parts
from lmf_kernels.bench.measure import Limits, limits
from lmf_kernels.bench.steps import COUNT
from lmf_kernels.bench.tables import rows_of, steps_of, table
from lmf_kernels.device import why_not

Row = dict[str, Any]
Target = tuple[str, float | None, float, bool]  # what it is, the figure, the target, whether that is the least

TINY = Sizes(name="tiny", hidden=64, inside=96, heads=4, keys=2, size=16, vocabulary=300)
TOKENS, LONGEST = 8192, 16384
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
WIDTH = 4096  # heads times their size
MODEL = "Llama-3-8B"


def kernels(device: torch.device, tiny: bool, add: Callable[[Iterable[Row]], None], rows: Sequence[Row]) -> str:
    """Measure all parts but attention, adding rows. Returns the tables."""
    known = limits(device, _dtype(device), quick=tiny)
    models = [TINY] if tiny else sorted(MODELS.values(), key=lambda sizes: sizes.name != MODEL)
    tokens, count = (64, 2**16) if tiny else (TOKENS, COUNT)
    for sizes in models:  # to compile takes long, and is done for one
        _measure(parts(sizes, tokens), device, known, add, compiling=device.type == "cuda" and sizes.name == MODEL)
    add(steps_of(device, known, why_not() is None, count))
    return "\n".join([_said(known), *table(rows), *target_lines(part_targets(rows))])


def attn(device: torch.device, tiny: bool, add: Callable[[Iterable[Row]], None], rows: Sequence[Row]) -> str:
    """Measure attention, adding rows. Returns the tables."""
    known = limits(device, _dtype(device), quick=tiny)
    cases = [attention(TINY, [32, 32], "documents of 32")] if tiny else sweep()
    flexed = {case.name for case in cases[1:2] + cases[6:8] + cases[-2:]}  # compiling it takes long

    def taken(case: Case, name: str) -> bool:
        return name not in UNTRIED and (name != "torch-flex" or case.name in flexed)

    _measure(cases, device, known, add, taken)
    dense = [case for case in cases if "D 64" in case.name or "D 128" in case.name]
    _measure(dense, device, known, add, lambda _, name: name in UNTRIED, plain=False)  # last: it might hang
    order = [row["case"] for row in rows]
    together = sorted(rows, key=lambda row: order.index(row["case"]))
    return "\n".join([_said(known), *table(together), *target_lines(attention_targets(rows))])


def sweep() -> list[Case]:
    """Return the attention that is measured; what the targets need comes first."""
    found = [_dense(128, length) for length in reversed(LENGTHS)]
    packed = [(128, 1), (128, 4), (64, 1), (64, 4)]
    for mean in (128, 1000):
        lengths = documents(mean, LONGEST)
        found += [attention(_sizes(size, group), lengths, f"documents of {mean} on average") for size, group in packed]
    found += [_dense(size, length) for size in (64, 256) for length in reversed(LENGTHS)]
    found += [_dense(128, length, group) for group in (4, 8) for length in (2048, 8192)]
    return found + [_dense(128, length, window=4096) for length in (8192, 16384)]


def _dense(size: int, length: int, group: int = 1, window: int | None = None) -> Case:
    what = f"documents of {length}" + (f", window of {window}" if window else "")
    return attention(_sizes(size, group, window), [length] * (LONGEST // length), what)


def _sizes(size: int, group: int, window: int | None = None) -> Sizes:
    heads = WIDTH // size
    given = {"hidden": WIDTH, "inside": WIDTH, "vocabulary": 1, "heads": heads, "keys": heads // group}
    return Sizes(name="", size=size, window=window, **given)


def _measure(
    cases: Sequence[Case],
    device: torch.device,
    known: Limits,
    add: Callable[[Iterable[Row]], None],
    taken: Callable[[Case, str], bool] = lambda case, name: True,
    compiling: bool = False,
    plain: bool = True,
) -> None:
    kernels = [kernel for _, kernel in Plugins().kernels.all()]
    for case in cases:
        found = [kernel for kernel in kernels if taken(case, kernel.name)]
        add(rows_of(case, found, device, _dtype(device), known, compiling, plain))


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _said(known: Limits) -> str:
    return (
        f"limits, measured: {known.bandwidth / 1e9:,.0f} GB/s of a copy, {known.rate / 1e12:,.1f} TFLOP/s of a product"
    )


# Targets


def part_targets(rows: Sequence[Row]) -> Iterator[Target]:
    """Yield what is aimed at for the parts of Llama-3-8B, and for AdamW."""

    def value(part: str, key: str, by: str, case: str = MODEL) -> float | None:
        what = {"part": part, "by": by, "case": case}
        return next((row[key] for row in rows if what.items() <= row.items() and row.get(key) is not None), None)

    ours = {"rms_norm": "lmf-rms-norm", "add_rms_norm": "lmf-add-rms-norm", "glu": "lmf-glu", "rotary": "lmf-rotary"}
    for part, name in ours.items():
        for way in ("forward", "backward"):
            yield f"{name}, {way}, share of the limit", value(part, f"{way} share", name), 0.85, True
            if part != "add_rms_norm":
                liger = value(part, way, name.replace("lmf", "liger"))
                yield f"{name}, {way}, liger's time / ours", _ratio(liger, value(part, way, name)), 1.0, True
    loss = "linear_cross_entropy", "both", "lmf-cross-entropy"
    yield "lmf-cross-entropy, ms", _times(value(*loss), 1e3), 45, False
    yield "lmf-cross-entropy, frozen head, ms", _times(value(*loss, f"{MODEL}, frozen head"), 1e3), 29, False
    sizes, memory = MODELS[MODEL], value("linear_cross_entropy", "memory", "lmf-cross-entropy")
    gradients = 2 * sizes.hidden * (sizes.vocabulary + TOKENS)
    yield "lmf-cross-entropy, GB beside gradients", None if memory is None else (memory - gradients) / 1e9, 0.6, False
    step = value("adamw", "forward share", "the same, moments of 8 bits", f"{COUNT:,} parameters")
    yield "adamw_, moments of 8 bits, share of the limit", step, 0.85, True


def attention_targets(rows: Sequence[Row]) -> Iterator[Target]:
    """Yield what is aimed at for attention."""

    def value(case: Case, key: str, by: str) -> float | None:
        return next((row[key] for row in rows if (row["case"], row["by"]) == (case.name, by) and row.get(key)), None)

    def faster(case: Case, way: str, than: str, by: str = "lmf") -> float | None:
        return _ratio(value(case, way, than), value(case, way, by))

    def rate(case: Case, way: int, by: str = "lmf") -> float | None:
        seconds = value(case, ("forward", "backward")[way], by)
        return case.flops[way] / seconds / 1e12 if seconds else None

    for length in (4096, 8192, 16384):
        case = _dense(128, length)
        yield f"D 128, {length}: forward, torch-flash / lmf", faster(case, "forward", "torch-flash"), 1.2, True
        yield f"D 128, {length}: forward, TFLOP/s", rate(case, 0), 430, True
    case = _dense(128, 8192)
    hopper = faster(case, "forward", "torch-cudnn", "lmf-hopper")
    yield "D 128, 8192: forward, torch-cudnn / lmf-hopper", hopper, 0.95, True
    yield "D 128, 8192: forward, lmf-hopper, TFLOP/s", rate(case, 0, "lmf-hopper"), 590, True
    yield "D 128, 8192: backward, torch-flash / lmf", faster(case, "backward", "torch-flash"), 1.2, True
    yield "D 128, 8192: backward, TFLOP/s", rate(case, 1), 390, True
    case = attention(_sizes(128, 1), documents(128, LONGEST), "documents of 128 on average")
    for way in ("forward", "backward"):
        yield f"D 128, about 128: {way}, torch-varlen / lmf", faster(case, way, "torch-varlen"), 1.5, True
        yield f"D 128, about 128: {way}, share of the limit", value(case, f"{way} share", "lmf"), 0.6, True


def target_lines(targets: Iterable[Target]) -> Iterator[str]:
    """Yield a line for each target, and whether it is met."""
    yield "\ntargets\n"
    for name, figure, target, least in targets:
        met = "not measured"
        if figure is not None:
            met = f"{figure:12,.2f}  {'met' if (figure >= target) == least or figure == target else 'missed'}"
        yield f"{name:50}{'>=' if least else '<='} {target:9,.2f}  {met}"


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top and bottom else None


def _times(figure: float | None, factor: float) -> float | None:
    return None if figure is None else figure * factor


# Pictures


def plot(suite: str, rows: Sequence[Row], file: Path) -> None:
    """Draw the shares of the limit, or for attention the FLOP/s over the length of documents."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3 if suite == "attn" else 1, figsize=(13, 8), squeeze=False)
    for row, way in zip(axes, ("forward", "backward"), strict=True):
        for place, size in zip(row, (64, 128, 256), strict=False):
            (_curves if suite == "attn" else _bars)(place, rows, way, size)
            place.set_title(f"{way}, heads of {size}" if suite == "attn" else way)
        row[0].set_ylabel("TFLOP/s" if suite == "attn" else "share of the limit")
    if axes[0][0].has_data():
        axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _curves(place: Any, rows: Sequence[Row], way: str, size: int) -> None:
    found = {_dense(size, length).name: length for length in LENGTHS}
    for by in dict.fromkeys(row["by"] for row in rows):
        here = [row for row in rows if row["by"] == by and row["case"] in found and way in row]
        points = sorted((found[row["case"]], row["flops"][way == "backward"] / row[way] / 1e12) for row in here)
        if points:
            place.plot(*zip(*points, strict=True), marker="o", label=by)
    place.set_xscale("log", base=2)


def _bars(place: Any, rows: Sequence[Row], way: str, _: int) -> None:
    here = [row for row in rows if f"{way} share" in row and row["case"] in (MODEL, "tiny")]
    cases = list(dict.fromkeys(row["part"] for row in here))
    for number, by in enumerate(dict.fromkeys(row["by"] for row in here)):
        points = [(cases.index(row["part"]) + number * 0.08, row[f"{way} share"]) for row in here if row["by"] == by]
        place.bar(*zip(*points, strict=True), width=0.07, label=by)
    place.set_xticks([at + 0.3 for at in range(len(cases))], cases)
