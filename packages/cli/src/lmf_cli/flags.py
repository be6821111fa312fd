"""Turns settings classes into command-line flags."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Optional

import typer
from lmf import RunSettings, config

KNOWN = ("objective", "method")  # keys of a run file that are not settings
HELP = {field.name: field.metadata["help"] for field in dataclasses.fields(RunSettings)}
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Output folder of a run, or anything that --model takes.")]
Format = Annotated[str | None, typer.Option(help=HELP["format"])]
Columns = Annotated[list[str] | None, typer.Option(help=HELP["columns"])]


def command(
    kinds: Mapping[str, type],
    run: Callable[..., None],
    headings: Mapping[str, str] = MappingProxyType({}),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    plain: Sequence[inspect.Parameter] = (),
) -> Callable[..., None]:
    """Make a Typer command with a flag for every field of some settings classes.

    Args:
        kinds: Settings classes by the heading that their flags get in ``--help``.
        run: Called with one object of each class, in order, and where each setting came from.
        headings: Other headings by the field at which they begin.
        defaults: What to show as the default of a field whose own is None.
        plain: Further parameters, as Typer takes them; ``run`` gets their values by name.
    """
    hints = {name: _bare(hint) for kind in kinds.values() for name, hint in typing.get_type_hints(kind).items()}

    def call(config_file: str | None = None, **given: Any) -> None:
        others = {parameter.name: given.pop(parameter.name) for parameter in plain}
        values = {name: _read(value, hints[name]) for name, value in given.items() if value not in (None, [], ())}
        file = None if config_file is None else Path(config_file)
        objects, origins = config.merge(list(kinds.values()), file, values, KNOWN)
        origins |= {name: str(file) for name in (config.read_toml(file) if file else ()) if name in KNOWN}
        run(*objects, origins, **others)

    help = "TOML file of settings; flags win over it."
    file = typer.Option("--config", metavar="PATH", help=help, show_default=False)
    annotations: dict[str, Any] = {"config_file": Annotated[Optional[str], file]}  # noqa: UP045 (Typer reads this form)
    for heading, kind in kinds.items():
        for f in dataclasses.fields(kind):
            heading = headings.get(f.name, heading)
            default = defaults.get(f.name, f.default)
            # what two of them have is refused by merge
            annotations.setdefault(f.name, _flag(f, hints[f.name], default, heading))
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword) for parameter in plain]
    parameters += [inspect.Parameter(n, keyword, default=None, annotation=a) for n, a in annotations.items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function for Typer: a parameter that is a settings class becomes a flag for each of its fields.

    The name of the parameter is the heading of the flags in ``--help``. Other parameters stay as they are.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    kinds = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    if not kinds:
        return function
    signature = inspect.signature(function).parameters.values()
    plain = [parameter.replace(annotation=hints[parameter.name]) for parameter in signature]

    def run(*objects: Any, **others: Any) -> None:
        *settings, _ = objects
        function(**dict(zip(kinds, settings, strict=True)), **others)

    headings = {name.replace("_", " ").capitalize(): kind for name, kind in kinds.items()}
    made = command(headings, run, plain=[parameter for parameter in plain if parameter.name not in kinds])  # type: ignore[arg-type]
    made.__doc__ = function.__doc__
    return made


def value_of(kind: type, name: str, text: str) -> Any:
    """Return what a text stands for as the value of a setting, or the text itself, which the check then refuses."""
    hint = _bare(typing.get_type_hints(kind)[name])
    return _read([text] if _is_list(hint) else text, hint)


def written_out(arguments: Sequence[str], kind: type) -> list[str]:
    """Return arguments in which each flag that may stand without a value has the one that it then means."""
    bare = {config.flag(f.name): f.metadata["bare"] for f in dataclasses.fields(kind) if f.metadata["bare"]}
    pairs = zip(arguments, [*arguments[1:], "-"], strict=True)
    return [f"{this}={bare[this]}" if this in bare and after.startswith("-") else this for this, after in pairs]


def _flag(f: dataclasses.Field[Any], kind: Any, default: Any, heading: str) -> Any:
    """Return the annotation that Typer makes a flag from; its default None means that it was not given."""
    flag = config.flag(f.name)
    choices = [str(choice) for choice in typing.get_args(kind)] if typing.get_origin(kind) is Literal else []
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        metavar="|".join(filter(None, [_word(kind), *f.metadata["words"]])) or None,
        autocompletion=lambda: choices,
        help=f"{f.metadata['help']}{_default(default)}",
        show_default=False,
        rich_help_panel=heading,
    )
    if kind is bool:
        return Annotated[Optional[bool], option]  # noqa: UP045
    # text: what it means is found here, and checked with the bounds
    return Annotated[Optional[list[str] if _is_list(kind) else str], option]  # noqa: UP045


def _read(given: Any, kind: Any) -> Any:
    """Return the value that a flag's text stands for, or the text itself, which the check then refuses."""
    if _is_list(kind):
        return [_read(item, typing.get_args(kind)[0]) for item in given]
    if typing.get_origin(kind) is Literal:
        return next((choice for choice in typing.get_args(kind) if str(choice) == given), given)
    if kind in (int, float):
        try:
            return kind(given)
        except ValueError:
            return given
    return given


def _word(kind: Any) -> str | None:
    """Return what stands for the value in ``--help``."""
    if _is_list(kind):
        return _word(typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}.get(kind)


def _bare(hint: Any) -> Any:
    """Return T of ``T | None``."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return " [required]"
    if value in (None, (), ""):
        return ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return f" [default: {', '.join(map(str, value)) if isinstance(value, tuple) else value}]"
