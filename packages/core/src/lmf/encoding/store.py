"""Encoded data, kept for the next run that would encode the same.

An entry is found by a hash of everything that its tokens depend on: the records themselves, the
tokenizer, the template, the objective and its options, and the code that encodes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ..conversation import Record
from ..data.cache import cache_folder
from ..errors import LmfError
from ..report import Reporter
from ..templates import template
from .examples import Examples
from .fit import Survey

WORTH = 500_000  # tokens; fewer are encoded again as quickly
_ABANDONED = 24 * 3600  # seconds after which nobody writes an entry any more
KEPT = 16  # entries; the least recently used go first


def fingerprint(records: Iterable[Record]) -> str:
    """Return a hash of records: what they hold, where they come from, and their order."""
    found = hashlib.blake2b(digest_size=32)
    for record in records:
        found.update(repr(record).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def code_of(criterion: type) -> list[str]:
    """Return a hash of the source of all that makes tokens of records; nothing where that is in no file."""
    found = hashlib.blake2b(digest_size=32)
    files = [*Path(__file__).parent.glob("*.py"), *Path(template.__file__).parent.glob("*.py")]
    for name in dict.fromkeys(kind.__module__.partition(".")[0] for kind in criterion.__mro__ if kind is not object):
        module = sys.modules[name]
        file = getattr(module, "__file__", None)
        if file is None:  # a notebook, or python -c
            return []
        if name != "lmf":
            files += Path(file).parent.rglob("*.py") if hasattr(module, "__path__") else [Path(file)]
    for file in sorted(files):
        found.update(file.read_bytes())
    return [found.hexdigest(), tokenizers.__version__]


def key(facts: Mapping[str, Any]) -> str:
    """Return the name of the entry for these facts."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=32).hexdigest()


def load(key: str, report: Reporter) -> tuple[Examples, Survey] | None:
    """Return an entry, or None. A damaged one is deleted, and that is told."""
    folder = _folder() / key
    if not folder.is_dir():
        return None
    try:
        survey = Survey(**json.loads((folder / "survey.json").read_text(encoding="utf-8")))
        examples = Examples.load(folder)
        os.utime(folder)
    except (OSError, ValueError, TypeError, LmfError) as error:
        report.note(f"the cached data in {folder} are damaged and will be made again: {error}")
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return examples, survey


def save(key: str, examples: Examples, survey: Survey, report: Reporter) -> None:
    """Keep an entry, whole or not at all; that there is no room for it stops no run, and is told."""
    folder = _folder()
    if survey.tokens < WORTH or (folder / key).exists():
        return
    partial = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        examples.save(partial)
        (partial / "survey.json").write_text(json.dumps(dataclasses.asdict(survey)), encoding="utf-8")
        partial.replace(folder / key)
        entries = sorted((e for e in folder.iterdir() if not e.name.startswith(".")), key=lambda e: e.stat().st_mtime)
        for old in entries[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        for left in folder.glob(".partial-*"):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        report.note(f"the encoded data are not kept: {folder}: {error.strerror or error}")
    finally:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)


def _folder() -> Path:
    return cache_folder() / "encoded"
