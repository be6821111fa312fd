"""Columns under other names: from ``--columns``, or from the ``dataset_info.json`` of LLaMA-Factory and LLM-Genie."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..data.jsonfile import noun
from ..errors import ConfigError, DataError, did_you_mean
from . import fields

KEYS = frozenset({"prompt", "query", "response", "instruction", "input", "output", "history", "system", "tools"}) | {
    *("messages", "conversations", "text", "completion", "chosen", "rejected", "margin", "label", "kto_tag"),
    *("question", "response_j", "response_k"),
}
"""What may stand on the left in ``--columns``: the keys of core's formats, and LLaMA-Factory's names for some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A data set that a ``dataset_info.json`` describes.

    Attributes:
        file: Its file or folder, relative to the folder of ``dataset_info.json``.
        format: The name of the data format of its records once they are renamed; None where the
            objective decides.
        columns: What to give to ``rename``: a column of the data for each key of the format; empty
            to take the records as they are.
        tags: What to give to ``rename``: LLaMA-Factory's tags, which say how messages are written.
        sha1: The SHA-1 that the file should have, or "".
    """

    file: str
    format: str | None
    columns: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    sha1: str = ""


def entry(info: Any, name: str) -> Entry:
    """Return what a ``dataset_info.json`` says about one data set.

    Args:
        info: The content of the file.
        name: The data set.

    Raises:
        DataError: It is not described, is no local file, or is described in a way that lmf does not know.
    """
    sets = _object("dataset_info.json", info)
    if name not in sets:
        known = ", ".join(list(sets)[:20]) or "none"
        raise DataError(f"dataset_info.json has no data set {name!r}; it has {known}.{did_you_mean(name, sets)}")
    described = _object(name, sets[name])
    _check_keys(name, described, _ENTRY)
    formatting = described.get("formatting") or "alpaca"
    if not isinstance(formatting, str) or formatting not in _SHAPES:
        raise DataError(f"{name}.formatting is {noun(formatting)}; lmf knows {', '.join(_SHAPES)}.")
    shape = _SHAPES[formatting]
    columns = _columns(name, described, shape)
    ranking = fields.flag(f"{name}.ranking", described.get("ranking", False))
    if ranking:
        _check_ranking(name, columns, pairs=shape == "alpaca" and (not columns or "output" in columns))
    tags = {} if shape == "alpaca" else _tags(name, described)
    return Entry(
        file=_file(name, described),
        format=_format(shape, ranking, columns),
        columns=columns,
        tags=tags,
        sha1=fields.text(f"{name}.file_sha1", described.get("file_sha1") or ""),
    )


def parse_columns(text: str, keys: Iterable[str] = KEYS) -> dict[str, str]:
    """Return the column of each key that ``--columns prompt=question,response=answer`` names.

    On the left stands a key of a data format, or LLaMA-Factory's name for it (``prompt``,
    ``query``, ``response``); on the right the column of the data that holds it.

    Args:
        text: What was given.
        keys: What may stand on the left.

    Raises:
        ConfigError: A part has another form, or its left side is unknown or stands twice.
    """
    known = frozenset(keys)
    named: dict[str, str] = {}
    for part in text.split(","):
        key, _, column = (piece.strip() for piece in part.partition("="))
        if not (key and column):
            raise ConfigError(f"--columns has the part {part.strip()!r}; write KEY=COLUMN, such as prompt=question.")
        if key not in known:
            listed = ", ".join(sorted(known))
            raise ConfigError(f"--columns has the unknown key {key!r}; known are {listed}.{did_you_mean(key, known)}")
        if key in named:
            raise ConfigError(f"--columns names the key {key!r} twice; keep one of them.")
        named[key] = column
    names = {"query": "input", "response": "output"}
    if not named.keys().isdisjoint(_TASK):  # by itself or with a completion, a prompt is a key of ours
        names["prompt"] = "instruction"
    columns = {names.get(key, key): column for key, column in named.items()}
    if len(columns) < len(named):
        twice = next(key for key in named if names.get(key, key) != key and names[key] in named)
        raise ConfigError(f"--columns names {twice!r} and {names[twice]!r}, which are the same; keep one of them.")
    return columns


def rename(
    record: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a record with the keys of its format; columns that are not named are left out.

    Args:
        record: The record as the data have it.
        columns: The column of each key; without any, the record keeps its own.
        tags: How its messages are written, where it is not as in ShareGPT.

    Raises:
        DataError: The record lacks a column. One that a format can do without may be missing,
            unless another is nearly called so.
    """
    renamed: dict[str, Any] = {}
    for key, column in columns.items() if columns else zip(record, record, strict=True):
        if column in record:
            value = record[column]
            renamed[key] = _retagged(value, tags) if tags and key in _SPOKEN else value
            continue
        meant = fields.misspelled(column, frozenset(record).difference(columns.values()))
        if key not in _OPTIONAL or meant:
            hint = f" Did you mean {meant!r}?" if meant else ""
            listed = reprlib.repr(list(record))
            raise DataError(f"the record has no column {column!r} for {key!r}; its keys are {listed}.{hint}")
    return renamed


def _object(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path} is {noun(value)}; it must be an object.")
    return value


def _check_keys(path: str, value: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in value:
        if key not in known:
            listed = ", ".join(sorted(known))
            raise DataError(f"{path} has the unknown key {key!r}; known are {listed}.{did_you_mean(key, known)}")


def _file(name: str, described: Mapping[str, Any]) -> str:
    """Return the file; it lies in the folder of ``dataset_info.json`` or below it."""
    if described.get("num_samples") is not None:
        raise DataError(f"{name}.num_samples: lmf reads whole files; write the samples into a file of their own.")
    if "file_name" not in described:
        remote = next((key for key in _REMOTE if key in described), None)
        if remote is None:
            raise fields.missing(name, "file_name", described)
        raise DataError(f"{name}.{remote}: the data are not here; download them and name the file in file_name.")
    file = fields.text(f"{name}.file_name", described["file_name"])
    posix, windows = PurePosixPath(file), PureWindowsPath(file)
    if not file or posix.is_absolute() or windows.anchor or ".." in {*posix.parts, *windows.parts}:
        inside = "it must be a path inside the folder of dataset_info.json, without '..'"
        raise DataError(f"{name}.file_name is {noun(file)}; {inside}.")
    return file


def _columns(name: str, described: Mapping[str, Any], shape: str) -> Mapping[str, str]:
    """Return the column of each key of ours. As in LLaMA-Factory, a list of columns is the whole list."""
    if "columns" not in described:  # then the records have the keys of their format
        return {}
    path = f"{name}.columns"
    named = _object(path, described["columns"])
    _check_keys(path, named, _COLUMNS)
    given = {key: fields.text(f"{path}.{key}", column) for key, column in named.items() if column not in (None, "")}
    columns = {_COLUMNS[key]: column for key, column in given.items()}
    if shape == "sharegpt":
        return {"conversations": "conversations", **columns}
    if set(given) == {"prompt"}:  # a text to learn or a prompt to reply to, as the objective has it
        return {"text": given["prompt"], "prompt": given["prompt"]}
    return columns


def _check_ranking(name: str, columns: Mapping[str, str], pairs: bool) -> None:
    """Refuse a ranking that would be read as a plain reply.

    Args:
        name: The data set.
        columns: Its columns.
        pairs: Whether both replies may stand in one column, as a list.
    """
    lacking = [key for key in ("chosen", "rejected") if key not in columns]
    if lacking and not (pairs and len(lacking) == 2):
        raise DataError(f"{name}.ranking is true, but {name}.columns names no {' and no '.join(lacking)}; name both.")


def _tags(name: str, described: Mapping[str, Any]) -> Mapping[str, str]:
    if "tags" not in described:
        return {}
    path = f"{name}.tags"
    tags = _object(path, described["tags"])
    _check_keys(path, tags, _TAGS)
    return _TAGS | {key: fields.text(f"{path}.{key}", tag) for key, tag in tags.items()}


def _format(shape: str, ranking: bool, columns: Mapping[str, str]) -> str | None:
    if "chosen" in columns and "rejected" in columns:
        return f"{shape}-preference"
    if ranking and shape == "alpaca":
        return "alpaca-pair"
    if "kto_tag" in columns:
        return f"{shape}-unpaired"
    return None if "text" in columns else shape


def _retagged(value: Any, tags: Mapping[str, str]) -> Any:
    """Return messages as ShareGPT writes them; what is no message is left to the format to refuse."""
    if isinstance(value, list):
        return [_retagged(item, tags) for item in value]
    if not isinstance(value, dict):
        return value
    message = dict(value)
    if tags["content_tag"] in message:
        message["value"] = message.pop(tags["content_tag"])
    if tags["role_tag"] in message:
        role = message.pop(tags["role_tag"])
        roles = {tags[tag]: ours for tag, ours in _ROLES.items()}
        message["from"] = roles.get(role, role) if isinstance(role, str) else role
    return message


_SHAPES = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "sharegpt"}  # LLaMA-Factory's formattings, and ours
_COLUMNS = {  # LLaMA-Factory's names, and ours
    **{key: key for key in ("history", "system", "tools", "chosen", "rejected", "kto_tag")},
    **{key: key for key in ("images", "videos", "audios")},
    **{"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"},
}
_ROLES = {  # LLaMA-Factory's names of roles, and ShareGPT's
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_TAGS = {"role_tag": "from", "content_tag": "value"} | _ROLES
_REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "script_url")
_ENTRY = frozenset({"file_name", "file_sha1", "formatting", "ranking", "columns", "tags", "num_samples"}).union(
    _REMOTE, ("subset", "split", "folder", "revision")
)
_TASK = frozenset({"query", "response", "instruction", "input", "output", "history"})
_SPOKEN = frozenset({"conversations", "chosen", "rejected"})
_OPTIONAL = frozenset({"input", "history", "system", "tools", "images", "videos", "audios", "margin"})
