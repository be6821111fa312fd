"""``lmf OBJECTIVE METHOD`` and ``lmf plan OBJECTIVE METHOD``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from lmf import ConfigError, Objective, Plugins, RunSettings, TuningMethod
from lmf.config import flag, read_toml
from lmf.plan import Plan
from typer.core import TyperGroup
from typer.main import get_command

from . import flags


def group(plugins: Plugins, objective: str, run: Callable[[Plan], None]) -> typer.Typer:
    """Return the commands of one objective: one for each tuning method, with exactly its flags."""
    goal = plugins.objectives[objective]

    class Methods(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(plugins.methods)

        def get_command(self, ctx: Any, name: str) -> Any:
            method = plugins.methods[name]
            app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
            app.command(name, help=method.summary)(_method(plugins, goal, method, run))
            return get_command(app)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0].startswith("-") and not {"-h", "--help"} & set(args):
                args = [_method_from_file(goal, args, plugins), *args]
            return super().parse_args(ctx, args)

    return typer.Typer(
        cls=Methods, add_completion=False, no_args_is_help=True, callback=lambda: None, help=goal.summary
    )


def plan_group(plugins: Plugins) -> typer.Typer:
    """Return ``lmf plan``: the same lines, without starting."""
    from .app import lazy_group

    groups = {name: lambda name=name: group(plugins, name, show) for name in plugins.objectives}
    return typer.Typer(
        cls=lazy_group(groups),
        add_completion=False,
        no_args_is_help=True,
        callback=lambda: None,
        help="Check a run without starting it: lmf plan train lora ...",
    )


def start(plan: Plan) -> None:
    """Run a plan."""
    from .progress import Progress

    progress = Progress()
    progress.note(f"lmf {plan.objective.name} {plan.method.name}: loading")
    from lmf.training import train  # torch is imported here, not for --help

    quiet()
    folder = train(plan, progress)
    progress.done(folder)


def quiet() -> None:
    """Silence the progress bars and advice of transformers; what matters is told by the run itself."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def show(plan: Plan) -> None:
    """Print what a run would do, and where each setting comes from."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column)
    for name, value in plan.values().items():
        if value not in (None, ()):
            text = ", ".join(value) if isinstance(value, tuple) else str(value)
            table.add_row(flag(name) if name not in flags.KNOWN else name, text, plan.origins.get(name, "command"))
    console.print(table)
    for what, data in (("data", plan.data), ("held-out data", plan.held_out)):
        for source in data.sources:
            console.print(f"{what}: {source.path}: {source.records:,} records, format {source.format}")
    console.print(f"model: {plan.model.path}")
    console.print("Nothing was started. Leave out the word plan to start.")


def _method(
    plugins: Plugins, goal: Objective, method: TuningMethod, run: Callable[[Plan], None]
) -> Callable[..., None]:
    def call(settings: RunSettings, goal_options: Any, options: Any, origins: Mapping[str, str]) -> None:
        from lmf.plan import make_plan

        names = plugins.objectives.qualified(goal), plugins.methods.qualified(method)
        run(make_plan(plugins, *names, settings, goal_options, options, origins))

    kinds = {"Run": RunSettings, f"Objective {goal.name}": goal.options, f"Method {method.name}": method.options}
    taken = [f.name for kind in kinds.values() for f in dataclasses.fields(kind)]
    twice = {name for name in taken if taken.count(name) > 1}
    if twice:
        raise ConfigError(
            f"The objective {goal.name!r} and the method {method.name!r} both have the setting {min(twice)!r}, "
            "so they cannot be used together."
        )
    return flags.command(kinds, call)


def _method_from_file(goal: Objective, args: list[str], plugins: Plugins) -> str:
    """Return the method that the file after ``--config`` names."""
    file = None
    for i, arg in enumerate(args):
        if arg == "--config" and i + 1 < len(args):
            file = args[i + 1]
        elif arg.startswith("--config="):
            file = arg.removeprefix("--config=")
    methods = ", ".join(plugins.methods)
    if file is None:
        raise ConfigError(
            f"lmf {goal.name} needs a method before its flags: lmf {goal.name} METHOD. Methods: {methods}."
        )
    values = read_toml(Path(file))
    own = values.get("objective", goal.name)
    if own not in (goal.name, f"{plugins.objectives.qualified(goal)}"):
        raise ConfigError(f"{file} is a run of the objective {own!r}: lmf {own.rpartition(':')[2]} --config {file}")
    if not isinstance(values.get("method"), str):
        raise ConfigError(
            f'{file} names no method. Add method = "NAME", or write lmf {goal.name} NAME. Methods: {methods}.'
        )
    return values["method"]
