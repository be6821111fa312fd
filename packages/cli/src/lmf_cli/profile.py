"""``lmf profile``: what a few steps of a run tell about it."""

from __future__ import annotations

import typer
from lmf import Command, Plugins
from lmf.plugins import Registry

from .gradients import gradients
from .groups import application, lazy_group
from .learn import Shown, objectives
from .memory import memory

MEMORY = "Measure the memory of a few steps, beside the forecast: lmf profile memory train lora ..."
GRADIENTS = "Measure the gradient of each layer, as weights for --layer-weights: lmf profile gradients train lisa ..."


def profile_group(plugins: Plugins) -> typer.Typer:
    """Return ``lmf profile``: commands that take the lines of ``lmf OBJECTIVE METHOD``."""
    commands = Registry("profile", Command)
    for command in (
        Command(name="memory", summary=MEMORY, build=lambda: objectives(plugins, memory, Shown)),
        Command(name="gradients", summary=GRADIENTS, build=lambda: objectives(plugins, gradients)),
    ):
        commands.add(command, "lmf-cli")
    return application(
        cls=lazy_group(commands, lambda command: command.build(), {"Commands": list(commands)}),
        no_args_is_help=True,
        callback=lambda: None,
        subcommand_metavar="COMMAND OBJECTIVE METHOD [FLAGS]...",
    )
