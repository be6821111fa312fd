"""``lmf plugins`` and ``lmf models``: what is installed."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from lmf import Plugins

from .groups import application

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def plugin_group(plugins: Plugins) -> typer.Typer:
    """Return the commands ``lmf plugins`` and ``lmf plugins check``."""
    app = application()

    @app.callback(invoke_without_command=True)
    def show(context: typer.Context, json: Json = False) -> None:
        if context.invoked_subcommand:
            return
        if json:
            print(jsonlib.dumps([dataclasses.asdict(p) for p in plugins.installed], indent=2))
            return
        rows = [
            [p.package, p.version, f"unusable: {p.problem}" if p.problem else _provides(p.provides)]
            for p in plugins.installed
        ]
        table(["package", "version", "provides"], rows)
        if plugins.kernels:
            print()
            found = (kernel for _, kernel in plugins.kernels.all())
            kernels = [[each.name, each.part, each.summary, each.reason() or "runs"] for each in found]
            table(["kernel", "computes", "what it is", "here"], kernels)

    @app.command()
    def check() -> None:
        """Exit with 3 if a plugin is broken or two define the same name."""
        problems = plugins.problems()
        for problem in problems:
            print(problem)
        if problems:
            raise typer.Exit(3)
        print(f"{len(plugins.installed)} plugins, all usable, no name defined twice")

    return app


def models(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf models``."""

    def run(json: Json = False) -> None:
        from lmf.sources import checkpoints

        if json:
            families = [
                {"name": s.name, "model_types": sorted(s.model_types), "template": s.template, "package": package}
                for package, s in plugins.models.all()
            ]
            names = {name: c.summary for name, c in checkpoints(plugins).items()}
            print(jsonlib.dumps({"families": families, "checkpoints": names}, indent=2))
            return
        table(["checkpoint", "what it is"], [[name, c.summary] for name, c in checkpoints(plugins).items()])
        print()
        rows = [
            [s.name, ", ".join(sorted(s.model_types)), s.template] for _, s in plugins.models.all() if s.model_types
        ]
        table(["family", "model types", "default template"], rows)

    return run


def _provides(provides: dict[str, list[str]]) -> str:
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in provides.items())


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, without a heading if no column has a name; outside a terminal every row is one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 10_000).print(grid)
