"""``lmf plugins``, ``lmf models`` and ``lmf doctor``: what is installed, and whether it works."""

from __future__ import annotations

import dataclasses
import importlib.util
import json as jsonlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Annotated

import typer
from lmf import Plugins

from .groups import application

LEAST = {"torch": (2, 10), "transformers": (5, 10), "accelerate": (1, 10), "safetensors": (0, 5)}
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


def doctor(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf doctor``."""

    def run(json: Json = False) -> None:
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
    yield _script()
    for package, least in LEAST.items():
        try:
            have = version(package)
        except PackageNotFoundError:
            yield False, f"{package} is not installed: pip install lmf-core[torch]"
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", have)[:2])
        yield numbers >= least, f"{package} {have} ({'.'.join(map(str, least))} or newer)"
    yield from _devices()
    from lmf.sources import cache_folder

    folder = cache_folder()
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    writable = os.access(existing, os.W_OK)
    yield writable, f"the cache {folder} is {'' if writable else 'not '}writable"
    problems = plugins.problems()
    for problem in problems:
        yield False, problem
    if not problems:
        yield True, f"{len(plugins.installed)} plugins are usable"


def _script() -> tuple[bool, str]:
    """Whether the command ``lmf`` is this one: other distributions install a script of that name too."""
    entry = re.compile(r"^\[console_scripts\]$[^\[]*^lmf\s*=", re.M)
    owners = {d.name or "?" for d in distributions() if entry.search(d.read_text("entry_points.txt") or "")}
    others = ", ".join(sorted(owners - {"lmf-cli"}))
    script = shutil.which("lmf")
    if others:
        advice = "Use python -m lmf_cli, or separate environments."
        return False, f"{others} also installs a script named lmf; whichever came last owns it. {advice}"
    if script and Path(script).parent != Path(sys.executable).parent:
        return False, f"the lmf on PATH is {script}, not that of {sys.executable}; use python -m lmf_cli"
    return True, "the script lmf is ours"


def _devices() -> Iterator[tuple[bool, str]]:
    if not importlib.util.find_spec("torch"):
        return
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of CUDA is missing or does not fit
        yield False, f"torch cannot be imported: {' '.join(str(error).split())}"
        return
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield True, f"devices: {', '.join(gpus) or f'CPU with {torch.get_num_threads()} threads'}"


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
