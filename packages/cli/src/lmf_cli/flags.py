"""Turns settings classes into command-line flags."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from lmf import config

KNOWN = ("objective", "method")  # keys of a run file that are not settings


def command(kinds: Mapping[str, type], run: Callable[..., None]) -> Callable[..., None]:
    """Make a Typer command with a flag for every field of some settings classes.

    Args:
        kinds: Settings classes by the heading that their flags get in ``--help``.
        run: Called with one object of each class, in order, and where each setting came from.
    """

    def call(config_file: Path | None = None, **values: Any) -> None:
        given = {name: value for name, value in values.items() if value not in (None, [], ())}
        objects, origins = config.merge(list(kinds.values()), config_file, given, KNOWN)
        run(*objects, origins)

    file = typer.Option("--config", help="TOML file of settings; flags win over it.", show_default=False)
    parameters = [_parameter("config_file", Annotated[Path | None, file])]
    for heading, kind in kinds.items():
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            option = typer.Option(
                _spelling(f.name, hints[f.name]),
                help=f"{f.metadata['help']}{_default(f.default)}",
                show_default=False,
                rich_help_panel=heading,
            )
            parameters.append(_parameter(f.name, Annotated[_flag_type(hints[f.name]), option]))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _spelling(name: str, hint: Any) -> str:
    flag = config.flag(name)
    return f"{flag}/--no-{flag[2:]}" if hint is bool else flag


def _flag_type(hint: Any) -> Any:
    """Return the type that Typer reads; None always means that the flag was not given."""
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        return Optional[list[typing.get_args(hint)[0]]]  # noqa: UP045 (Typer reads this form)
    if typing.get_origin(hint) is Literal:
        return Optional[str]  # noqa: UP045 (checked with the other bounds, with a suggestion)
    return Optional[hint]  # noqa: UP045


def _default(value: Any) -> str:
    if value in (dataclasses.MISSING, None, (), ""):
        return ""
    shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
    return f" [{shown}]"
