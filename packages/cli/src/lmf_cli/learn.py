"""``lmf OBJECTIVE METHOD`` and ``lmf plan OBJECTIVE METHOD``."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from lmf import ConfigError, Objective, Plugins, RunSettings, TuningMethod
from lmf.config import flag, option, read_toml

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
    "parallel": "Several processes",
    "save_every": "What is kept and shown",
    "allow_pickle": "Trust",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """How what was found is printed."""

    json: bool = option(False, "Print JSON for programs.")


def group(plugins: Plugins, goal: Objective, run: Callable[..., None], extra: type | None = None) -> typer.Typer:
    """Return the commands of one objective: one for each tuning method, with exactly its flags.

    Args:
        plugins: What is installed.
        goal: The objective.
        run: Called with the plan, and with an object of ``extra`` if there is one.
        extra: Further settings, of the command and not of the run.
    """

    def make(method: TuningMethod) -> Callable[..., None]:
        return _command(plugins, goal, method, run, extra)

    base = lazy_group(plugins.methods, make, {"Methods": list(plugins.methods)})

    class Methods(base):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and not ctx.resilient_parsing:
                args = _with_method(plugins, goal, flags.written_out(args, RunSettings))
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
    return objectives(plugins, show, Shown)


def objectives(plugins: Plugins, run: Callable[..., None], extra: type | None = None) -> typer.Typer:
    """Return a command that takes the lines of ``lmf OBJECTIVE METHOD`` and does something else with the plan."""
    sections = {"Objectives": list(plugins.objectives)}
    return application(
        cls=lazy_group(plugins.objectives, lambda goal: group(plugins, goal, run, extra), sections),
        no_args_is_help=True,
        callback=lambda: None,
        subcommand_metavar="OBJECTIVE METHOD [FLAGS]...",
    )


def start(plan: Plan) -> None:
    """Run a plan."""
    from .progress import Progress

    progress = Progress()
    progress.note(f"lmf {plan.objective.name} {plan.method.name}: loading")
    gc.disable()  # imports leave no garbage; to look for it all the same takes an eighth of their time
    from lmf.models import quiet
    from lmf.training.loop import train  # torch is imported here, not for --help

    quiet()
    gc.enable()
    folder = train(plan, progress)
    progress.done(folder)


def show(plan: Plan, shown: Shown) -> None:
    """Print what a run would do, where each setting comes from, and the memory it would need."""
    from .memory import foreseen, show_forecast

    if shown.json:
        settings = {name: {"value": value, "from": _origin(plan, name)} for name, value in plan.values().items()}
        sources = [dataclasses.asdict(source) for source in (*plan.data.sources, *plan.held_out.sources)]
        found = {"settings": settings, "data": sources, "model": plan.model.path, "memory": foreseen(plan)}
        print(json.dumps(found, indent=2, default=str))
        return
    rows = []
    for name, value in plan.values().items():
        if value not in (None, ()):
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            rows.append([name if name in flags.KNOWN else flag(name), text, _origin(plan, name)])
    table(["setting", "value", "from"], rows)
    for what, data in (("data", plan.data), ("held-out data", plan.held_out)):
        for source in data.sources:
            records = "streamed" if source.records is None else f"{source.records:,} records"
            print(f"{what}: {source.path}: {records}, format {source.format}")
    print(f"model: {plan.model.path}", flush=True)
    show_forecast(foreseen(plan))
    print("Nothing was started. Leave out the word plan to start.")


def _origin(plan: Plan, name: str) -> str:
    return plan.origins.get(name, "command")


def _command(
    plugins: Plugins, goal: Objective, method: TuningMethod, run: Callable[..., None], extra: type | None
) -> Callable[..., None]:
    def call(settings: RunSettings, goal_options: Any, options: Any, *rest: Any) -> None:
        from lmf.plan import make_plan

        *more, origins = rest
        names = plugins.objectives.qualified(goal), plugins.methods.qualified(method)
        run(make_plan(plugins, *names, settings, goal_options, options, origins), *more)

    kinds = {"Run": RunSettings, f"Objective {goal.name}": goal.options, f"Method {method.name}": method.options}
    kinds |= {"Output": extra} if extra else {}
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
