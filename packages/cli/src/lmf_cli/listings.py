"""``lmf plugins``, ``lmf models`` and ``lmf doctor``: what is installed, and whether it works."""

from __future__ import annotations

import dataclasses
import importlib.util
import json as jsonlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Annotated

import typer
from lmf import Plugins
from lmf.sources import cache_folder, checkpoints

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def plugin_group(plugins: Plugins) -> typer.Typer:
    """Return the commands ``lmf plugins`` and ``lmf plugins check``."""
    app = typer.Typer(add_completion=False, help="Show the installed plugins and what they provide.")

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
        _table(["package", "version", "provides"], rows)

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
        """Show the model families and the checkpoints that have a name."""
        if json:
            families = [
                {"name": s.name, "model_types": sorted(s.model_types), "template": s.template, "package": package}
                for package, s in plugins.models.all()
            ]
            names = {name: c.summary for name, c in checkpoints(plugins).items()}
            print(jsonlib.dumps({"families": families, "checkpoints": names}, indent=2))
            return
        _table(["checkpoint", "what it is"], [[name, c.summary] for name, c in checkpoints(plugins).items()])
        print()
        rows = [
            [s.name, ", ".join(sorted(s.model_types)), s.template] for _, s in plugins.models.all() if s.model_types
        ]
        _table(["family", "model types", "default template"], rows)

    return run


def doctor(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf doctor``."""

    def run(json: Json = False) -> None:
        """Look for what commonly goes wrong; exit with 1 if something did."""
        findings = list(_examine(plugins))
        if json:
            print(jsonlib.dumps([{"ok": ok, "finding": text} for ok, text in findings], indent=2))
        else:
            for ok, text in findings:
                print(f"{'ok ' if ok else 'BAD'}  {text}")
        if not all(ok for ok, _ in findings):
            raise typer.Exit(1)

    return run


def _examine(plugins: Plugins) -> Iterator[tuple[bool, str]]:
    yield sys.version_info >= (3, 11), f"Python {sys.version.split()[0]} (3.11 or newer)"
    owners = sorted(
        {
            d.name
            for d in distributions()
            if "console_scripts" in (d.read_text("entry_points.txt") or "")
            for e in d.entry_points
            if e.group == "console_scripts" and e.name == "lmf" and d.name != "lmf-cli"
        }
    )
    script = shutil.which("lmf")
    if owners:
        yield (
            False,
            f"{', '.join(owners)} also installs a script named lmf ({script}); whichever came last owns it.\n"
            "     Use python -m lmf_cli, or separate environments.",
        )
    elif script and Path(script).parent != Path(sys.executable).parent:
        yield False, f"the lmf on PATH is {script}, not that of this Python ({sys.executable}); use python -m lmf_cli"
    else:
        yield True, "the script lmf is ours"
    for package, least in (("torch", (2, 10)), ("transformers", (5, 10)), ("accelerate", (1, 10)), ("peft", (0, 18))):
        try:
            have = version(package)
        except PackageNotFoundError:
            yield (
                package == "peft",
                f"{package} is not installed" + ("" if package == "peft" else ": pip install lmf-core[torch]"),
            )
            continue
        numbers = tuple(int(part) for part in have.split("+")[0].split(".")[:2] if part.isdigit())
        yield numbers >= least, f"{package} {have} ({'.'.join(map(str, least))} or newer)"
    if importlib.util.find_spec("torch"):
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield True, f"devices: {', '.join(gpus) or f'CPU with {torch.get_num_threads()} threads'}"
    folder = cache_folder()
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    yield os.access(existing, os.W_OK), f"the cache {folder} is writable"
    problems = plugins.problems()
    for problem in problems:
        yield False, problem
    if not problems:
        yield True, f"{len(plugins.installed)} plugins are usable"


def _provides(provides: dict[str, list[str]]) -> str:
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in provides.items())


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)
