"""The application: our commands, one for each objective, and those that plugins bring."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import typer
from lmf import Command, Objective, Plugins

from .groups import lazy_group

OURS = {  # the summary, and the module and function that build it
    "plan": ("Check a run without starting it: lmf plan train lora ...", "learn", "plan_group"),
    "profile": ("Measure a few steps of a run: lmf profile memory train lora ...", "profile", "profile_group"),
    "launch": ("Start a run in several processes, on one machine or more.", "launch", "launch"),
    "chat": ("Talk to a model.", "chat", "chat"),
    "generate": ("Write replies: to one message, or to each record of a file.", "use", "generate"),
    "data": ("Check, show and rewrite data, and download data sets.", "data", "data_group"),
    "templates": ("Show, compare and check conversation templates.", "templates", "template_group"),
    "runs": ("Show finished and interrupted runs.", "runs", "run_group"),
    "models": ("Show the model families and the checkpoints that have a name.", "listings", "models"),
    "plugins": ("Show the installed plugins and what they provide.", "listings", "plugin_group"),
    "doctor": ("Look for what commonly goes wrong; exit with 1 if something did.", "doctor", "doctor"),
}


def build(plugins: Plugins) -> typer.Typer:
    """Return the application.

    All commands stand in ``plugins.commands``, so a name that two packages claim is refused like
    any other, and works as ``package:name``.
    """
    commands = [
        ("lmf-cli", Command(name=name, summary=summary, build=functools.partial(_own, module, function, plugins)))
        for name, (summary, module, function) in OURS.items()
    ]
    commands += [
        (package, Command(name=goal.name, summary=goal.summary, build=functools.partial(_objective, plugins, goal)))
        for package, goal in plugins.objectives.all()
    ]
    for package, command in commands:
        if f"{package}:{command.name}" not in plugins.commands:  # a command goes before an objective of its package
            plugins.commands.add(command, package)
    objectives = list(plugins.objectives)
    sections = {"Objectives": objectives, "Commands": [name for name in plugins.commands if name not in objectives]}
    return typer.Typer(
        cls=lazy_group(plugins.commands, lambda command: command.build(), sections),
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Fine-tune, evaluate and use language models: lmf OBJECTIVE METHOD, for example lmf train lora.",
        callback=lambda: None,
    )


def _own(module: str, function: str, plugins: Plugins) -> Any:
    return getattr(importlib.import_module(f".{module}", __package__), function)(plugins)


def _objective(plugins: Plugins, goal: Objective) -> Any:
    from . import learn

    return learn.group(plugins, goal, learn.start)
