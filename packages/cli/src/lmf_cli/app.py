"""The commands of ``lmf``, each built when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from lmf import ConfigError, PluginError, Plugins
from lmf.errors import did_you_mean
from typer.core import TyperGroup
from typer.main import get_command

from . import learn, listings, runs, use


def build(plugins: Plugins) -> typer.Typer:
    """Return the application: our commands, one for each objective, and those that plugins bring."""
    commands: dict[str, Callable[[], Any]] = {}
    for name in plugins.objectives:
        commands[name] = lambda name=name: learn.group(plugins, name, learn.start)
    commands |= {
        "plan": lambda: learn.plan_group(plugins),
        "generate": lambda: use.generate(plugins),
        "runs": lambda: runs.app,
        "models": lambda: listings.models(plugins),
        "plugins": lambda: listings.plugin_group(plugins),
        "doctor": lambda: listings.doctor(plugins),
    }
    for name, command in plugins.commands.items():
        if name in commands:
            raise PluginError(f"The command {name!r} of {plugins.commands.qualified(command)} exists already.")
        commands[name] = lambda command=command: command.app
    return typer.Typer(
        cls=lazy_group(commands),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Fine-tune, evaluate and use language models: lmf OBJECTIVE METHOD, for example lmf train lora.",
        callback=lambda: None,
    )


def lazy_group(commands: dict[str, Callable[[], Any]]) -> type[TyperGroup]:
    """Return a command group that builds a command when it is asked for.

    Args:
        commands: For each name what returns a Typer application, or a function for one command.
    """

    class Group(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(commands)

        def get_command(self, ctx: Any, name: str) -> Any:
            if name not in commands:
                known = ", ".join(commands)
                raise ConfigError(f"There is no command {name!r}.{did_you_mean(name, commands)}\nCommands: {known}.")
            made = commands[name]()
            if not isinstance(made, typer.Typer):
                app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
                app.command()(made)
                made = app
            command = get_command(made)
            command.name = name
            return command

    return Group
