"""Settings: dataclasses whose fields know their own help and bounds.

A setting is written once, with ``option``. The command line, the TOML reader, the saved
run file and the reference page are all made from that one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from .errors import ConfigError, PluginError, did_you_mean

T = TypeVar("T", bound=Any)


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    commas: bool = False,
    bare: str | None = None,
    words: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Declare a setting: a dataclass field with a help text and bounds.

    Args:
        default: The value when nothing is said; without one the setting is required.
        help: One sentence with the unit, for ``--help``.
        min: Smallest value allowed.
        max: Largest value allowed.
        above: The value must be greater than this.
        commas: Several values may also be written as one, separated by commas.
        bare: What a flag without a value means; by default, a flag needs one.
        words: What words mean that may stand in place of a value; the bounds do not hold for them.
    """
    metadata = {"help": help, "min": min, "max": max, "above": above, "commas": commas, "bare": bare, "words": words}
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """Return how the setting ``name`` is written on the command line."""
    return "--" + name.replace("_", "-")


def as_written(f: dataclasses.Field[Any], value: Any) -> Any:
    """Return how a value of a field is written: by the word that means it, if there is one."""
    return next((word for word, meant in f.metadata["words"].items() if meant == value), value)


def check_declaration(kind: type) -> None:
    """Check that every field of a settings class can become a flag and a key of a file.

    Raises:
        PluginError: A field was not declared with ``option``, has a name or a type that a flag
            cannot have, or a default that it would refuse from a user.
    """
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        if "help" not in f.metadata:
            raise PluginError(f"the field {f.name!r} of {kind.__name__} must be declared with lmf.option")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", f.name):
            raise PluginError(f"the option name {f.name!r} must be lower-case letters, digits or '_'")
        wanted, optional = _without_none(hints[f.name])
        if not _is_supported(wanted):
            raise PluginError(
                f"the type of {flag(f.name)} is {wanted}; it must be bool, int, float, str, Path, a Literal, "
                "or a tuple of any number of one of them"
            )
        if f.default is MISSING:
            continue
        if optional and f.default is not None:
            raise PluginError(f"{flag(f.name)} may be None, which TOML cannot write, so None must be its default")
        where = f"the default of {flag(f.name)}"
        try:
            same = _check(where, f.default, hints[f.name], f.metadata) == f.default
        except ConfigError as error:
            raise PluginError(str(error).rstrip(".")) from None
        if not same:
            noun = _NOUNS.get(wanted, "a tuple")
            raise PluginError(f"{where} is {f.default!r}; it must be {noun}")


def make(kind: type[T], values: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> T:
    """Make a settings object, checking every type and bound.

    Args:
        kind: A dataclass whose fields were declared with ``option``.
        values: Values by field name; absent fields take their default.
        sources: What to call a setting in an error, where that is not its flag.

    Raises:
        ConfigError: A value is missing, of the wrong type, or out of bounds.
    """
    hints = typing.get_type_hints(kind)
    checked = {}
    for f in dataclasses.fields(kind):
        where = (sources or {}).get(f.name, flag(f.name))
        required = f.default is MISSING and f.default_factory is MISSING
        if f.name in values:
            checked[f.name] = _check(where, values[f.name], hints[f.name], f.metadata)
            if required and checked[f.name] == ():
                raise ConfigError(f"{where} is empty.")
        elif required:
            raise ConfigError(f"{where} is required: {f.metadata['help']}")
    return kind(**checked)


def merge(
    kinds: Sequence[type], file: Path | None, flags: Mapping[str, Any], known: Sequence[str] = ()
) -> tuple[list[Any], dict[str, str]]:
    """Make one object of each kind from defaults, then a TOML file, then flags.

    Args:
        kinds: Settings classes.
        file: A TOML file, or None.
        flags: Values by field name; None means not given.
        known: Names that the file may hold besides (``objective`` and ``method``).

    Returns:
        The objects, and for each setting where its value came from:
        ``default``, ``flag`` or the file's path.

    Raises:
        ConfigError: The file is unreadable or has an unknown key, or a value is wrong.
        PluginError: Two of the kinds have a setting of the same name.
    """
    names: dict[str, type] = {}
    for kind in kinds:
        for f in dataclasses.fields(kind):
            if f.name in names:
                owners = " and of ".join(f"{k.__module__}.{k.__qualname__}" for k in (names[f.name], kind))
                raise PluginError(f"{flag(f.name)} is a setting of {owners}; the two cannot be used together")
            names[f.name] = kind
    values: dict[str, Any] = {}
    origins = dict.fromkeys(names, "default")
    labels: dict[str, str] = {}
    for name, value in read_toml(file).items() if file else ():
        if name in known:
            continue
        if name not in names:
            raise ConfigError(
                f"{file}: no setting is called {name!r}.{did_you_mean(name, [*names, *known])}\n"
                f"Settings here: {', '.join(sorted([*names, *known]))}."
            )
        values[name], origins[name], labels[name] = value, str(file), f"{name} in {file}"
    for name, value in flags.items():
        if value is not None:
            values[name], origins[name] = value, "flag"
            labels.pop(name, None)
    objects = [make(k, {n: v for n, v in values.items() if names[n] is k}, labels) for k in kinds]
    return objects, origins


def read_toml(file: Path) -> dict[str, Any]:
    """Read a flat TOML file of settings; ``-`` and ``_`` are the same in its keys."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"--config {file} does not exist.") from None
    except OSError as error:
        raise ConfigError(f"--config {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start}).") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, an endless number, endless brackets
        raise ConfigError(f"{file} is not valid TOML: {error}.") from None
    settings = {}
    for name, value in values.items():
        if name.replace("-", "_") in settings:
            raise ConfigError(f"{file} sets {name.replace('-', '_')!r} twice, once with '-' and once with '_'.")
        settings[name.replace("-", "_")] = value
    return settings


def to_toml(values: Mapping[str, Any]) -> str:
    """Write settings as TOML text that ``read_toml`` reads back; None is left out."""
    return "".join(f"{_key(name)} = {_toml(value)}\n" for name, value in values.items() if value is not None)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, int):
        return json.dumps(value)  # TOML's integers and booleans are JSON's
    if not isinstance(value, str | Path):
        raise TypeError(f"TOML has no way to write {value!r}")
    if not _is_unicode(value):
        raise ConfigError(f"{str(value)!r} cannot be written as TOML; it must be valid Unicode.")
    # TOML's strings are JSON's, except that a raw DEL is not allowed in them
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")


def _check(where: str, value: Any, hint: Any, bounds: Mapping[str, Any]) -> Any:
    kind, optional = _without_none(hint)
    if value is None and optional:
        return None
    if isinstance(value, str) and value in bounds.get("words", ()):
        return bounds["words"][value]
    if typing.get_origin(kind) is Literal:
        return _check_choice(where, value, typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str | Path):
            value = (value,)
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        if bounds.get("commas"):
            parts = [part for item in value for part in (item.split(",") if isinstance(item, str) else [item])]
            value = [_part(part, typing.get_args(kind)[0]) for part in parts]
        return tuple(_check(where, item, typing.get_args(kind)[0], bounds) for item in value)
    if value == "" and kind in (str, Path):
        raise ConfigError(f"{where} is empty.")
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise ConfigError(f"{where} is too large; it must be a finite number.") from None
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        words = "".join(f", or {word}" for word in bounds.get("words", ()))
        raise ConfigError(f"{where} is {value!r}; it must be {_NOUNS[kind]}{words}.")
    if isinstance(value, str | Path):
        _check_text(where, value)
    else:
        _check_number(where, value, bounds)
    return value


def _part(part: Any, kind: Any) -> Any:
    """Return one of several values that commas separate: the number that a text stands for, where one is wanted."""
    if not isinstance(part, str):
        return part
    text = part.strip()
    return int(text) if kind is int and re.fullmatch(r"[+-]?[0-9]+", text) else text


def _check_choice(where: str, value: Any, choices: Sequence[Any]) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    names = [str(choice) for choice in choices]
    raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(names)}.{did_you_mean(str(value), names)}")


def _check_text(where: str, value: str | Path) -> None:
    if not _is_unicode(value):
        raise ConfigError(f"{where} is {str(value)!r}; it must be valid Unicode.")
    if isinstance(value, Path) and "\0" in str(value):
        raise ConfigError(f"{where} is {str(value)!r}; a path cannot hold a null character.")


def _check_number(where: str, value: Any, bounds: Mapping[str, Any]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}; it must be a finite number.")
    low, high, above = bounds.get("min"), bounds.get("max"), bounds.get("above")
    if low is not None and value < low:
        raise ConfigError(f"{where} is {value}; it must be at least {low}.")
    if high is not None and value > high:
        raise ConfigError(f"{where} is {value}; it must be at most {high}.")
    if above is not None and value <= above:
        raise ConfigError(f"{where} is {value}; it must be greater than {above}.")


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Split ``T | None`` into T and True; any other type into itself and False."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    rest = [option for option in typing.get_args(hint) if option is not type(None)]
    return (rest[0] if len(rest) == 1 else hint), len(rest) < len(typing.get_args(hint))


def _is_supported(kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        item, *rest = typing.get_args(kind)
        return rest == [...] and typing.get_origin(item) is not tuple and _is_supported(item)
    if typing.get_origin(kind) is Literal:
        return all(type(choice) in (str, int) for choice in typing.get_args(kind))
    return kind in _NOUNS


def _is_unicode(value: str | Path) -> bool:
    """Whether UTF-8 can write it: the name of a file or an argument need not be Unicode."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


_NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
