"""The folder of results: ``results.json``, a line for each item in ``items/TASK.jsonl``, and reports.

Figures are only ever made of these lines, so they can be made again, and two models compared item by item.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmf import DataError, EvalTask, LmfError
from lmf.evaluate.metrics import metrics_of
from lmf.runs import write_file

from .figures import Figure, figure

RESULTS = "results.json"
ITEMS = "items"


@dataclass(frozen=True, slots=True)
class Score:
    """A figure as it was reported.

    Attributes:
        name: Its name.
        value: The figure.
        error: Its standard error.
        higher: Whether more is better.
    """

    name: str
    value: float
    error: float | None
    higher: bool


def scores_of(task: EvalTask, lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures of some items, as ``results.json`` has them; those that no item counts for are left out."""
    found = {}
    for metric in metrics_of(task):
        made: Figure = figure(metric, [line["scores"][metric.name] for line in lines])
        if math.isfinite(made.value):
            found[metric.name] = {"value": made.value, "error": made.error, "higher": metric.higher}
    return found


def parts_of(task: EvalTask, lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures of each part of a benchmark that has some, with the number of its items."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        parts.setdefault(line["part"], []).append(line)
    if set(parts) <= {""}:
        return {}
    return {
        name: {"items": len(some), "figures": scores_of(task, some)} for name, some in sorted(parts.items(), key=_place)
    }


def _place(part: tuple[str, Any]) -> tuple[int, str]:
    """Return where a part stands: numbers, as lengths are, by their value."""
    name, _ = part
    return (int(name), "") if name.isdecimal() else (0, name)


def items_file(folder: Path, task: str) -> Path:
    """Return the file with the items of a task."""
    return folder / ITEMS / f"{task.replace('/', '_').replace(':', '_')}.jsonl"


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results in a folder.

    Raises:
        LmfError: There are none, or they are damaged.
    """
    file = folder / RESULTS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {**found, "tasks": dict(found["tasks"])}
    except FileNotFoundError:
        raise LmfError(f"{folder} holds no results of lmf eval: {RESULTS} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LmfError(f"{file} is damaged: {type(error).__name__}: {error}.") from None


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the results of a folder, whole or not at all."""
    write_file(folder / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def read_items_of(folder: Path, task: str) -> list[dict[str, Any]]:
    """Read the items of a task.

    Raises:
        DataError: They are not there, or damaged.
    """
    file = items_file(folder, task)
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from None


def scores(result: Mapping[str, Any]) -> list[Score]:
    """Return the figures of a task in ``results.json``."""
    return [Score(name, each["value"], each["error"], each["higher"]) for name, each in result["figures"].items()]
