"""The record of a run, in its output folder: what was run, with what, and how it went.

``lmf.json`` names every plugin and version, every setting, the data by their hash, and the
result. ``run.toml`` holds the settings alone, to run them again. ``log.jsonl`` has one line
for each optimizer step and each evaluation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .errors import DataError, LmfError

RUN_FILE = "lmf.json"
SETTINGS_FILE = "run.toml"
SKIPPED_FILE = "skipped.txt"  # the bad records that were left out, a line or more each
LOG_FILE = "log.jsonl"
LOCK_FILE = ".lock"
FOLDER = "checkpoints"
LAUNCHED = "_LMF_LAUNCH"  # the environment variable that holds the beginning of the command line of ``lmf launch``


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[IO[str]]:
    """Give a stream for a file that appears whole or not at all: it is written beside it first, then renamed."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_file(file: Path, text: str) -> None:
    """Write a file whole or not at all, in a folder that is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        stream.write(text)


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run."""
    write_file(folder / RUN_FILE, json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises:
        LmfError: There is none, or it is damaged.
    """
    file = folder / RUN_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return dict(record) | {"settings": dict(record["settings"])}
    except FileNotFoundError:
        raise LmfError(f"{folder} holds no run of lmf: {RUN_FILE} is missing.") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise LmfError(f"{file} is damaged: {type(error).__name__}: {error}.") from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the log of a run; a last line that was cut while being written is left out.

    Raises:
        DataError: Another line is damaged.
    """
    file = folder / LOG_FILE
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    entries = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entries.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise DataError(f"{file}:{number}: not a line of JSON.") from None
    return entries


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run that have their final name, oldest first."""
    found = [path for path in (folder / FOLDER).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps before a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def resume_command(objective: str, folder: Path) -> str:
    """Return what to type to continue a run, in as many processes as it has."""
    command = os.environ.get(LAUNCHED, "lmf")
    return f"{command} {objective} --config {shlex.quote(str(folder / SETTINGS_FILE))} --resume"


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of the runs in and under a folder, not looking inside a run or through a link.

    What may not be read is passed over.
    """
    try:
        if (folder / RUN_FILE).exists():
            return [folder]
        if not folder.is_dir():
            return []
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))
    except PermissionError:
        return []
    return [run for child in inner for run in find_runs(child)]
