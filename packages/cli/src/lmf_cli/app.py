"""The application: our commands, one for each objective, and those that plugins bring."""

from __future__ import annotations

import typer
from lmf import Command, Plugins

from . import data, learn, listings, runs, templates, use
from .groups import lazy_group


def build(plugins: Plugins) -> typer.Typer:
    """Return the application.

    All commands stand in ``plugins.commands``, so a name that two packages claim is refused like
    any other, and works as ``package:name``.
    """
    ours = {
        "plan": learn.plan_group(plugins),
        "generate": use.generate(plugins),
        "data": data.data_group(plugins),
        "templates": templates.template_group(plugins),
        "runs": runs.app,
        "models": listings.models(plugins),
        "plugins": listings.plugin_group(plugins),
        "doctor": listings.doctor(plugins),
    }
    goals = plugins.objectives.all()
    rows = [
        *(("lmf-cli", name, app) for name, app in ours.items()),
        *((package, goal.name, learn.group(plugins, goal, learn.start)) for package, goal in goals),
    ]
    for package, name, app in rows:
        if f"{package}:{name}" not in plugins.commands:  # a command goes before an objective of its own package
            plugins.commands.add(Command(name=name, app=app), package)
    objectives = list(plugins.objectives)
    sections = {"Objectives": objectives, "Commands": [name for name in plugins.commands if name not in objectives]}
    return typer.Typer(
        cls=lazy_group(plugins.commands, lambda command: command.app, sections),
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Fine-tune, evaluate and use language models: lmf OBJECTIVE METHOD, for example lmf train lora.",
        callback=lambda: None,
    )
