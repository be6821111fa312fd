"""Results as a table, as Markdown, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmf import LmfError
from lmf.runs import write_file

from .results import Score, scores

HEAD = ("task", "figure", "value", "± error", "items", "shots", "asked in")


def print_table(results: Mapping[str, Any]) -> None:
    """Print the figures of all tasks."""
    rows = [HEAD, *_rows(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in (2, 3, 4, 5) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    for name, result in results["tasks"].items():
        for note in result["notes"]:
            print(f"{name}: {note}")


def write_reports(folder: Path, results: Mapping[str, Any]) -> None:
    """Write ``report.md``, and where matplotlib is installed ``report.png``, and ``by-length.png`` of some tasks."""
    write_file(folder / "report.md", markdown(results))
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        return
    plot(results, folder / "report.png")
    plot_lengths(results, folder / "by-length.png")


def markdown(results: Mapping[str, Any]) -> str:
    """Return a report."""
    lines = [f"# {results['model']}", "", f"`{results['command']}`, {results['date']}", ""]
    lines += [f"| {' | '.join(HEAD)} |", "|---|---|--:|--:|--:|--:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(results)]
    for name, result in results["tasks"].items():
        if result["parts"]:
            lines += ["", f"## {name} by part", ""]
            names = list(result["figures"])
            lines += [f"| part | items | {' | '.join(names)} |", f"|---|--:|{'--:|' * len(names)}"]
            for part, found in result["parts"].items():
                values = (_number(found["figures"][each]["value"]) for each in names)
                lines.append(f"| {part} | {found['items']:,} | {' | '.join(values)} |")
        lines += [f"\n{name}: {note}" for note in result["notes"]]
    versions = ", ".join(f"{name} {number}" for name, number in (results["plugins"] | results["versions"]).items())
    return "\n".join([*lines, "", f"Python {results['python']}, {versions}", ""])


def plot(results: Mapping[str, Any], file: Path) -> None:
    """Draw the first figure of each task that lies between 0 and 1, with its 95% interval."""
    found: list[tuple[str, Score]] = []
    for name, result in results["tasks"].items():
        shares = [each for each in scores(result) if each.higher and 0 <= each.value <= 1]
        found += [(f"{name} ({each.name})", each) for each in shares[:1]]
    if found:
        errors = [1.96 * (each.error or 0) for _, each in found]
        picture(file, results["model"], [name for name, _ in found], [each.value for _, each in found], errors)


def plot_lengths(results: Mapping[str, Any], file: Path) -> None:
    """Draw the first figure of each task by length, over the tokens of its problems, with its 95% interval."""
    tasks = {name: result for name, result in results["tasks"].items() if result.get("by_length")}
    if not tasks:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(6, 1 + 3 * len(tasks)), layout="constrained")
    FigureCanvasAgg(made)
    for axes, (name, result) in zip(made.subplots(len(tasks), squeeze=False)[:, 0], tasks.items(), strict=True):
        figure = next(iter(result["figures"]), None)
        points = [
            (int(length), found["figures"][figure])
            for length, found in result["parts"].items()
            if figure in found["figures"]
        ]
        values = [each["value"] for _, each in points]
        axes.errorbar(
            [length for length, _ in points],
            values,
            [1.96 * (each["error"] or 0) for _, each in points],
            capsize=3,
            marker="o",
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks([length for length, _ in points], [f"{length:,}" for length, _ in points])
        axes.set_xlabel("tokens")
        axes.set_ylabel(f"{name} ({figure})")
    made.suptitle(results["model"])
    partial = file.with_name(f".{file.name}.partial")
    made.savefig(partial, format="png", dpi=120)
    partial.replace(file)


def picture(file: Path, title: str, names: Sequence[str], values: Sequence[float], errors: Any) -> None:
    """Draw bars with their intervals.

    Args:
        file: The PNG to write, whole or not at all.
        title: What stands above.
        names: The name of each bar.
        values: Its length.
        errors: How far its interval reaches, as matplotlib takes ``xerr``.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise LmfError(f"{file} needs the package matplotlib: pip install 'lmf-eval[plot]'") from None
    made = Figure(figsize=(8, 1 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots()
    axes.barh(names, values, xerr=errors, color="#4c72b0", capsize=3)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(title)
    partial = file.with_name(f".{file.name}.partial")
    made.savefig(partial, format="png", dpi=120)
    partial.replace(file)


def _rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, result in results["tasks"].items():
        for each in scores(result):
            error = "" if each.error is None else _number(each.error)
            cells = (f"{result['items']:,}", str(result["shots"]), result["in"])
            rows.append((name, each.name, _number(each.value), error, *cells))
    return rows


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.2f}"
