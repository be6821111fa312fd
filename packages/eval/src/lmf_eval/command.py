"""``lmf eval``: figures of a model, and whether two models differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from lmf import ConfigError, Evaluation, Plugins, option

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Output folder of a run, or anything that --model takes.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is measured, and where the figures go."""

    task: tuple[str, ...] = option(
        help="Tasks or groups (lmf eval tasks), .py or .toml files, lm-eval:NAME; again or with commas for more.",
        commas=True,
    )
    data: tuple[str, ...] = option((), "Other data than the task's own: PATH, or TASK=PATH for one of several.")
    adapter: Path | None = option(None, "An adapter of lmf or peft to put on MODEL.")
    out: Path | None = option(None, "Folder for results.json and each item; eval/MODEL by default.")
    force: bool = option(False, "Begin anew, whatever is in the folder.")
    allow_code_execution: bool = option(False, "Run what the model writes, where a task asks for it (HumanEval).")


def run(model: Model, wanted: Wanted, evaluation: Evaluation) -> None:
    """Measure MODEL on benchmarks. A call that was interrupted goes on where it stopped."""
    from .order import make_order

    order = make_order(model, wanted, evaluation, Plugins())
    from .running import measure  # torch is imported here

    measure(order)


def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="Folder of results.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another, of the same tasks.")],
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="Also write it: .md or .png.")] = None,
) -> None:
    """Compare two models item by item, and tell whether the differences are real."""
    from .comparing import compare_folders

    if out is not None and out.suffix not in (".md", ".png"):
        raise ConfigError(f"--out {out}: a comparison is written as .md or .png.")
    compare_folders(Path(one), Path(other), out)


def tasks() -> None:
    """List the tasks that are installed, and their groups."""
    from lmf.evaluate.sources import groups_of

    plugins = Plugins()
    rows = [(package, task.name, task.asks, task.summary) for package, task in plugins.tasks.all()]
    width = max((len(name) for _, name, _, _ in rows), default=0)
    for _, name, asks, summary in rows:
        print(f"{name:{width}}  {asks:10}  {summary}")
    for group, members in sorted(groups_of(plugins).items()):
        print(f"{group:{width}}  group       {', '.join(task.name for task in members)}")
