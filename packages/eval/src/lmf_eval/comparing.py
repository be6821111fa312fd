"""Two folders of results, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmf import ConfigError, DataError, Metric, Plugins
from lmf.evaluate.metrics import metrics_of
from lmf.evaluate.sources import find_tasks
from lmf.runs import write_file

from .figures import Difference, difference
from .order import HARNESS
from .results import read_items_of, read_results

SURE = 0.05  # a difference with a smaller p-value is called real


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of both models.

    Attributes:
        task: The task.
        metric: The figure.
        items: How many both have.
        found: The figures and their difference.
    """

    task: str
    metric: Metric
    items: int
    found: Difference

    @property
    def verdict(self) -> str:
        """What the difference says."""
        found = self.found
        if found.p >= SURE or found.one == found.other:
            return "no difference shown"
        return "B is better" if (found.other > found.one) == self.metric.higher else "A is better"

    def cells(self) -> tuple[str, ...]:
        """Return it as the cells of a table."""
        found = self.found
        values = (f"{each:.4f}" for each in (found.one, found.other, found.other - found.one))
        spread = f"{found.low:+.4f} to {found.high:+.4f}"
        p = f"{found.p:.2g}"
        return (self.task, self.metric.name, *values, spread, p, found.test, f"{self.items:,}", self.verdict)


HEAD = ("task", "figure", "A", "B", "B - A", "95% of it", "p", "test", "items", "")


def compare_folders(one: Path, other: Path, out: Path | None) -> None:
    """Print, and write, what differs between two models.

    Raises:
        LmfError: They have no task in common, or what they were asked was not the same.
    """
    first, second = read_results(one), read_results(other)
    names = [name for name in first["tasks"] if name in second["tasks"]]
    if not names:
        tasks = [", ".join(each["tasks"]) or "none" for each in (first, second)]
        raise DataError(f"There is no task in both folders. {one} has {tasks[0]}; {other} has {tasks[1]}.")
    plugins = Plugins()
    rows = [row for name in names for row in _rows(name, one, other, first, second, plugins)]
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    print(f"A: {first['model']} ({one})\nB: {second['model']} ({other})")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    told = [f"{name}: {text}" for name in names for text in _asked_apart(first["tasks"][name], second["tasks"][name])]
    if len(rows) > 1:
        chance = f"of {len(rows)} where nothing differs, {SURE * len(rows):.1f} would fall below {SURE}"
        told.append(f"each p is that of one figure; {chance}")
    print("\n".join(told))
    if out is None:
        return
    if out.suffix == ".md":
        write_file(out, _markdown(cells, told, first["model"], second["model"]))
    else:
        _plot(rows, out)
    print(f"saved {out}")


def _rows(
    name: str, one: Path, other: Path, first: Mapping[str, Any], second: Mapping[str, Any], plugins: Plugins
) -> Iterator[Row]:
    """Yield the figures of a task."""
    pair = first["tasks"][name], second["tasks"][name]
    versions = [each["asked"]["version"] for each in pair]
    if versions[0] != versions[1]:
        raise DataError(f"{name} was asked in version {versions[0]} by {one} and in version {versions[1]} by {other}.")
    lines = [read_items_of(one, name), read_items_of(other, name)]
    by_key = [{(line["key"], line["repeat"]): line for line in _numbered(each)} for each in lines]
    common = [key for key in by_key[0] if key in by_key[1]]
    if not common:
        raise DataError(f"{name}: the two have no item in common; their data are not the same.")
    for metric in _metrics(name, pair[0], plugins):
        values = [[tuple(found[key]["scores"][metric.name]) for key in common] for found in by_key]
        yield Row(name, metric, len(common), difference(metric, *values))


def _numbered(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield items, those that are asked several times with a number."""
    seen: dict[str, int] = {}
    for line in lines:
        seen[line["key"]] = repeat = seen.get(line["key"], -1) + 1
        yield {**line, "repeat": repeat}


def _metrics(name: str, result: Mapping[str, Any], plugins: Plugins) -> list[Metric]:
    """Return the figures that both folders have of a task."""
    if name.startswith(HARNESS):
        return [
            Metric(name=each, measure=_unasked, higher=found["higher"]) for each, found in result["figures"].items()
        ]
    file = result["asked"].get("file")
    try:
        task, _ = find_tasks([file or name], plugins)[name]
    except (ConfigError, KeyError) as error:
        raise DataError(f"{error}\nThe results are of it, and only what defines it can make its figures.") from None
    return [metric for metric in metrics_of(task) if metric.name in result["figures"]]


def _unasked(problem: Any, outcome: Any) -> float:
    raise AssertionError("its values are in the items")


def _asked_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was not the same when a task was asked, besides the model."""
    for name, value in one["asked"].items():
        if name not in ("model", "adapter", "weights", "items_sha256", "data") and value != other["asked"].get(name):
            yield f"asked apart: {name} is {value!r} for A, {other['asked'].get(name)!r} for B"
    if one["items"] != other["items"]:
        yield f"A has {one['items']:,} items and B {other['items']:,}; compared are those of both"


def _markdown(cells: list[tuple[str, ...]], told: list[str], one: str, other: str) -> str:
    head, *rows = (f"| {' | '.join(line)} |" for line in cells)
    lines = [f"# {one} (A) and {other} (B)", "", head, f"|{'---|' * len(HEAD)}", *rows, "", *told, ""]
    return "\n".join(lines)


def _plot(rows: list[Row], file: Path) -> None:
    from .report import picture

    names = [f"{row.task} ({row.metric.name})" for row in rows]
    middle = [row.found.other - row.found.one for row in rows]
    errors = [
        [max(0.0, value - row.found.low) for value, row in zip(middle, rows, strict=True)],
        [max(0.0, row.found.high - value) for value, row in zip(middle, rows, strict=True)],
    ]
    picture(file, "B - A", names, middle, errors)
