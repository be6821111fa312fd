"""Makes the tables of README.md and the plot of the runs that throughput.py has measured."""

from __future__ import annotations

import json
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- throughput: begin -->", "<!-- throughput: end -->"
NAMES = {
    "lmf": "LMF",
    "trl": "TRL",
    "llamafactory": "LLaMA-Factory",
    "swift": "ms-swift",
    "litgpt": "LitGPT",
    "torchtune": "torchtune",
}
METHODS = {
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "lisa": "LISA, 2 layers",
    "lisa-embeddings": "LISA, 2 layers and embeddings",
}

GROUPS = {
    "Full fine-tuning and LISA": ("full", "lisa", "lisa-embeddings"),
    "LoRA, rank 8, all linear layers": ("lora",),
}

TO_PEERS = (  # what, which is best, the figure, the same by CPU time, the target
    ("tokens/s", max, "rate", "rate_cpu", "≥", 1.5),
    ("peak", min, "peak", None, "≤", 0.75),
    ("first step", min, "first", "first_cpu", "≤", 0.7),
)

Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The medians over the runs of one mode of a tool; seconds, bytes, tokens and nats per token."""

    tool: str
    method: str
    packed: bool
    runs: int
    rate: float
    rate_cpu: float
    peak: float
    first: float
    first_cpu: float
    loss: float | None

    @property
    def name(self) -> str:
        lisa = f", {METHODS[self.method]}" if self.method.startswith("lisa") else ""
        packed = ", 512 tokens at a time" if self.tool == "lmf" else ", packed"
        return NAMES[self.tool] + lisa + packed * self.packed


def rows_of(runs: Sequence[Run], method: str) -> list[Row]:
    """Return the modes that were measured, LMF first and then the fastest first."""
    groups: dict[tuple[str, bool], list[Run]] = {}
    for run in runs:
        if run["method"] == method and "error" not in run:
            groups.setdefault((run["tool"], run["packed"]), []).append(run)

    def row(tool: str, packed: bool, group: Sequence[Run]) -> Row:
        keys = ("rate_wall", "rate_cpu", "peak", "first_wall", "first_cpu")
        rate, rate_cpu, peak, first, first_cpu = (statistics.median(run[key] for run in group) for key in keys)
        return Row(
            tool=tool,
            method=method,
            packed=packed,
            runs=len(group),
            rate=rate,
            rate_cpu=rate_cpu,
            peak=peak,
            first=first,
            first_cpu=first_cpu,
            loss=next((run["loss"] for run in group if "loss" in run), None),
        )

    rows = [row(*key, group) for key, group in groups.items()]
    return sorted(rows, key=lambda row: (row.tool != "lmf", -row.rate))


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [
        "| | tokens/s | tokens/CPU-s | peak, GB | first step, s | CPU-s | loss | runs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        figures = f"{row.rate:.1f} | {row.rate_cpu:.1f} | {row.peak / 1e9:.2f} | {row.first:.1f} | {row.first_cpu:.1f}"
        lines.append(f"| {row.name} | {figures} | {loss} | {row.runs} |")
    return lines


def targets(runs: Sequence[Run]) -> list[str]:
    """Return the table of what was to be reached. Every tool counts with the best of its modes, each time anew."""
    lines = ["| | measured | per CPU-s | target | met |", "|---|---:|---:|---:|---|"]

    def add(what: str, figure: float, by_cpu: float | None, sign: str, bound: float, unit: str = "x") -> None:
        met = figure >= bound if sign == "≥" else figure <= bound
        cpu = "" if by_cpu is None else f"{by_cpu:.2f}{unit}"
        lines.append(f"| {what} | {figure:.2f}{unit} | {cpu} | {sign} {bound}{unit} | {'yes' if met else 'no'} |")

    for method in ("full", "lora"):
        rows = rows_of(runs, method)
        ours, peers = [r for r in rows if r.tool == "lmf"], [r for r in rows if r.tool != "lmf"]
        if not ours or not peers:
            continue
        for what, best, figure, by_cpu, sign, bound in TO_PEERS:
            our, peer = (best(group, key=operator.attrgetter(figure)) for group in (ours, peers))
            cpu = ratio(ours, peers, by_cpu, best) if by_cpu else None
            title = f"{METHODS[method]}: {what}, {our.name} to {peer.name}"
            add(title, ratio(ours, peers, figure, best), cpu, sign, bound)
    full = [row for row in rows_of(runs, "full") if row.tool == "lmf"]
    for method, faster, smaller in (("lisa", 2.5, 0.5), ("lisa-embeddings", 1.8, None)):
        lisa = rows_of(runs, method)
        if not lisa or not full:
            continue
        speed, speed_cpu = (ratio(lisa, full, key, max) for key in ("rate", "rate_cpu"))
        add(f"{METHODS[method]}: tokens/s, to full", speed, speed_cpu, "≥", faster)
        if smaller:
            add(f"{METHODS[method]}: peak, to full", ratio(lisa, full, "peak", min), None, "≤", smaller)
    for tool, wall, cpu in helped(runs):
        if tool == "lmf":
            add("`lmf --help`", wall, cpu, "≤", 0.35, " s")
    return lines


def ratio(ours: Sequence[Row], others: Sequence[Row], figure: str, best: Callable[..., float]) -> float:
    """Return our best figure by theirs."""
    our, other = (best(getattr(row, figure) for row in rows) for rows in (ours, others))
    return our / other


def helped(runs: Sequence[Run]) -> list[tuple[str, float, float]]:
    """Return for each tool that has it the seconds and CPU seconds of ``--help``, the fastest first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run["method"] == "help" and not run["status"]:
            groups.setdefault(run["tool"], []).append(run)
    medians = ((t, *(statistics.median(run[key] for run in g) for key in ("wall", "cpu"))) for t, g in groups.items())
    return sorted(medians, key=lambda row: row[1])


def agreement(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each method that the peers have: how far apart the losses are."""
    lines = []
    for method in ("full", "lora"):
        losses = {row.name: row.loss for row in rows_of(runs, method) if row.loss and not row.packed}
        if len(losses) > 1:
            middle = statistics.median(losses.values())
            name, loss = max(losses.items(), key=lambda item: abs(item[1] - middle))
            lines.append(f"- {METHODS[method].partition(',')[0]}: at most {abs(loss / middle - 1):.2%} ({name}).")
    return lines


def text(found: dict[str, Any], plot: str) -> str:
    """Return what stands in README.md between the two marks."""
    runs, machine, settings = found["runs"], found["machine"], found["settings"]
    lengths = found["lengths"]
    memory = machine["memory_bytes"] / 2**30
    versions = "; ".join(versions_of(tool, packages) for tool, packages in found["versions"].items())
    torch = sorted({packages["torch"] for packages in found["versions"].values() if "torch" in packages})
    lines = [
        f"{found['date']}, {machine['processor']}, {machine['cores']} cores, {memory:.0f} GiB, {machine['system']}, "
        f"Python {machine['python']}, torch {', '.join(torch)}; {settings['threads']} threads, fp32.",
        f"{len(lengths)} records of {min(lengths)} to {max(lengths)} tokens, {sum(lengths):,} in all; "
        f"{settings['steps']} steps of {settings['batch']} records.",
        f"{versions}.",
        "",
        *targets(runs),
        "",
        f"![tokens per second and peak memory]({plot})",
    ]
    for title, methods in GROUPS.items():
        rows = [row for method in methods for row in rows_of(runs, method)]
        lines += ["", f"### {title}", "", *table(rows)]
    if helps := helped(runs):
        lines += ["", "### `--help`", "", "| | s | CPU-s |", "|---|---:|---:|"]
        lines += [f"| {NAMES[tool]} | {wall:.2f} | {cpu:.2f} |" for tool, wall, cpu in helps]
    if apart := agreement(runs):
        lines += ["", "How far the held-out losses of the unpacked runs are from their median:", "", *apart]
    if failed := [run for run in runs if "error" in run]:
        lines += ["", "Failed:", "", *(f"- {NAMES[r['tool']]}, {r['method']}: {r['error']}" for r in failed)]
    return "\n".join(lines)


def versions_of(tool: str, packages: dict[str, str]) -> str:
    """Return the version of a tool, and that of transformers if it has it."""
    own, *_ = (version for name, version in packages.items() if name not in ("torch", "transformers", "peft"))
    engine = packages.get("transformers")
    return f"{NAMES[tool]} {own}" + (f" (transformers {engine})" if engine else "")


def draw(runs: Sequence[Run], file: Path) -> None:
    """Draw the rates and the peaks of full fine-tuning, LISA and LoRA as bars."""
    from matplotlib.figure import Figure

    groups = {title: [r for method in methods for r in rows_of(runs, method)] for title, methods in GROUPS.items()}
    figure = Figure(figsize=(9, 0.8 + 0.27 * sum(map(len, groups.values()))), layout="constrained")
    axes = figure.subplots(len(groups), 2, squeeze=False, height_ratios=[max(1, len(rows)) for rows in groups.values()])
    for (title, rows), (left, right) in zip(groups.items(), axes, strict=True):
        rows = sorted(rows, key=lambda row: row.rate)
        labels = [row.name for row in rows]
        colours = ["tab:orange" if row.tool == "lmf" else "tab:blue" for row in rows]
        for axis, what, values in (
            (left, "tokens/s", [row.rate for row in rows]),
            (right, "peak, GB", [row.peak / 1e9 for row in rows]),
        ):
            bars = axis.barh(labels, values, color=colours)
            axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
            axis.set_title(f"{title.partition(',')[0]}: {what}", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.12)
        right.set_yticklabels([])
    figure.savefig(file, dpi=90)


def main(results: Path, readme: Path) -> None:
    """Draw the plot beside the results; write the tables between the two marks of README.md.

    Results that are not below the folder of README.md are only shown.
    """
    if not results.exists():
        raise SystemExit(f"{results} does not exist: measure first, or name the file with --results.")
    found = json.loads(results.read_text(encoding="utf-8"))
    plot = results.with_suffix(".png")
    draw(found["runs"], plot)
    if not results.is_relative_to(readme.parent):
        print(text(found, plot.name))
        return
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = text(found, str(plot.relative_to(readme.parent)))
    readme.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")
    print(f"{readme} and {plot} are up to date")
