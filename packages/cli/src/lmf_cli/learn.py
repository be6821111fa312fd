"""``lmf OBJECTIVE METHOD`` and ``lmf plan OBJECTIVE METHOD``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from lmf import ConfigError, Objective, Plugins, RunSettings, TuningMethod
from lmf.config import flag, read_toml

from . import flags
from .groups import application, lazy_group
from .listings import table

if TYPE_CHECKING:
    from lmf.plan import Plan

HEADINGS = {  # by the setting at which the heading begins
    "model": "Model, data and output",
    "template": "Examples",
    "eval_data": "Held-out data",
    "epochs": "Length and batches",
    "optimizer": "Optimizer",
    "dtype": "Computation",
    "save_every": "What is kept and shown",
    "allow_pickle": "Trust",
}


def group(plugins: Plugins, goal: Objective, run: Callable[[Plan], None]) -> typer.Typer:
    """Return the commands of one objective: one for each tuning method, with exactly its flags."""

    def make(method: TuningMethod) -> Callable[..., None]:
        return _command(plugins, goal, method, run)

    base = lazy_group(plugins.methods, make, {"Methods": list(plugins.methods)})

    class Methods(base):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and not ctx.resilient_parsing:
                args = _with_method(plugins, goal, args)
            return super().parse_args(ctx, args)

        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except Exception as error:
                if hasattr(error, "possibilities"):  # Typer's, for a flag that does not exist
                    _refuse_flag_of_another(plugins, getattr(error, "option_name", ""), ctx.invoked_subcommand)
                raise

    return application(
        cls=Methods,
        no_args_is_help=True,
        callback=lambda: None,
        subcommand_metavar="METHOD [FLAGS]...",
    )


def plan_group(plugins: Plugins) -> typer.Typer:
    """Return ``lmf plan``: the same lines, without starting."""
    sections = {"Objectives": list(plugins.objectives)}
    return application(
        cls=lazy_group(plugins.objectives, lambda goal: group(plugins, goal, show), sections),
        no_args_is_help=True,
        callback=lambda: None,
        subcommand_metavar="OBJECTIVE METHOD [FLAGS]...",
    )


def start(plan: Plan) -> None:
    """Run a plan."""
    from .progress import Progress

    progress = Progress()
    progress.note(f"lmf {plan.objective.name} {plan.method.name}: loading")
    from lmf.training.loop import train  # torch is imported here, not for --help

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
    rows = []
    for name, value in plan.values().items():
        if value not in (None, ()):
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            shown = name if name in flags.KNOWN else flag(name)
            rows.append([shown, text, plan.origins.get(name, "command")])
    table(["setting", "value", "from"], rows)
    for what, data in (("data", plan.data), ("held-out data", plan.held_out)):
        for source in data.sources:
            records = "streamed" if source.records is None else f"{source.records:,} records"
            print(f"{what}: {source.path}: {records}, format {source.format}")
    print(f"model: {plan.model.path}")
    print("Nothing was started. Leave out the word plan to start.")


def _command(
    plugins: Plugins, goal: Objective, method: TuningMethod, run: Callable[[Plan], None]
) -> Callable[..., None]:
    def call(settings: RunSettings, goal_options: Any, options: Any, origins: Mapping[str, str]) -> None:
        from lmf.plan import make_plan

        names = plugins.objectives.qualified(goal), plugins.methods.qualified(method)
        run(make_plan(plugins, *names, settings, goal_options, options, origins))

    kinds = {"Run": RunSettings, f"Objective {goal.name}": goal.options, f"Method {method.name}": method.options}
    return flags.command(kinds, call, HEADINGS, {"learning_rate": method.learning_rate})


def _refuse_flag_of_another(plugins: Plugins, wanted: str, method: str) -> None:
    """Raise ConfigError if other methods have a flag."""
    options = {name: [flag(f.name) for f in dataclasses.fields(each.options)] for name, each in plugins.methods.items()}
    others = [name for name in options if wanted in options[name]]
    if others:
        raise ConfigError(f"{wanted} is a flag of {' and '.join(others)}, not of {method}.") from None


def _with_method(plugins: Plugins, goal: Objective, args: list[str]) -> list[str]:
    """Return the arguments with the method that the file after ``--config`` names, if they name none.

    Raises:
        ConfigError: There is no method, there are two, or the file is a run of another objective.
    """
    given = None if args[0].startswith("-") else args[0]
    file = _config_file(args)
    methods = f"Methods: {', '.join(plugins.methods)}."
    if file is None:
        if given or {"-h", "--help"} & set(args):
            return args
        raise ConfigError(f"lmf {goal.name} needs a method before its flags: lmf {goal.name} METHOD. {methods}")
    named = {key: value for key, value in read_toml(file).items() if key in flags.KNOWN}
    for key, value in named.items():
        if not isinstance(value, str):
            raise ConfigError(f"{key} in {file} is {value!r}; it must be text.")
    objective = named.get("objective", goal.name)
    if plugins.objectives[objective] is not goal:
        raise ConfigError(f"{file} is a run of the objective {objective!r}: lmf {objective} ... --config {file}")
    method = named.get("method", given)
    if method is None:
        raise ConfigError(f'{file} names no method. Add method = "NAME", or write lmf {goal.name} NAME. {methods}')
    if given is None:
        return [method, *args]
    if plugins.methods[method] is not plugins.methods[given]:
        raise ConfigError(f"The method is {given!r} on the command line and {method!r} in {file}; leave out one.")
    return args


def _config_file(args: Sequence[str]) -> Path | None:
    """Return the file after ``--config``, the last one if there are several."""
    file = None
    for arg, following in zip(args, [*args[1:], None], strict=True):
        if arg == "--config":
            file = following
        elif arg.startswith("--config="):
            file = arg.removeprefix("--config=")
    if file == "":
        raise ConfigError("--config is empty.")
    return None if file is None else Path(file)
