"""Commands that are built when they are asked for, and a ``--help`` in sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from lmf.plugins import Registry
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from .flags import expanded


def application(**options: Any) -> typer.Typer:
    """Return an empty Typer application whose help is plain text, and fast to print."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, **options)


DEFAULT = "run"


class Group(TyperGroup):
    """A group whose help tells all that each command does. Its command ``run`` is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if DEFAULT in self.commands and args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, command.get_short_help_str(200)) for name, command in names.items() if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Command(TyperCommand):
    """A command with its flags under the headings that they name."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            heading = getattr(param, "rich_help_panel", None) or f"{param.param_type_name}s".capitalize()
            if record := param.get_help_record(ctx):
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _application_of(made: Any) -> typer.Typer:
    """Return a Typer application of what builds a command: one, a function, or a group of these by their names."""
    if isinstance(made, typer.Typer):
        return made
    if not isinstance(made, Mapping):
        app = application()
        app.command(cls=Command)(expanded(made))
        return app
    app = application(cls=Group, no_args_is_help=True, callback=lambda: None)  # or one command alone would be the group
    for name, each in made.items():
        if isinstance(each, Mapping):
            app.add_typer(_application_of(each), name=name, help=f"Commands: {', '.join(each)}.")
        else:
            app.command(name, cls=Command)(expanded(each))
    return app


def lazy_group(
    registry: Registry[Any], make: Callable[[Any], Any], sections: Mapping[str, Sequence[str]]
) -> type[TyperGroup]:
    """Return a group of commands, one for each name in a registry, built when it is asked for.

    Args:
        registry: What the commands are made from, each with its summary.
        make: Returns a Typer application for one item, or what ``Command.build`` may return.
        sections: The names to list, by their heading in ``--help``.
    """

    class Group(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [name for names in sections.values() for name in names]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if ctx.resilient_parsing and cmd_name not in registry:  # a shell completes a line that is not finished
                return None
            command = get_command(_application_of(make(registry[cmd_name])))
            command.name = cmd_name
            command.help = command.help or registry[cmd_name].summary
            return command

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            for heading, names in sections.items():
                rows = [(name, registry[name].summary) for name in names]
                if rows:
                    with formatter.section(heading):
                        formatter.write_dl(rows)

    return Group
