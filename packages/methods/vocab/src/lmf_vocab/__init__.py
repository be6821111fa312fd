"""Vocabulary extension: new pieces for a tokenizer, and rows for them in a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmf import Command, DataSet, hookimpl

DATA = Path(__file__).parent / "data"


def build() -> Mapping[str, Any]:
    from . import command

    return {
        "corpus": command.corpus,
        "train": command.train,
        "merge": command.merge,
        "extend": command.extend,
        "add-merges": command.add_merges,
        "prune": command.prune,
        "check": command.check,
        "apply": command.apply,
        "report": command.report,
    }


@hookimpl
def lmf_commands() -> list[Command]:
    return [Command(name="vocab", summary="Extend the vocabulary of a model for another language.", build=build)]


@hookimpl
def lmf_datasets() -> list[DataSet]:
    source = "Written for LMF."
    return [
        DataSet(
            name="korean",
            summary="321 short texts in Korean, 328 kB: a language that English tokenizers split badly.",
            source=source,
            licence="Apache-2.0",
            files=lambda: [DATA / "korean.jsonl"],
        ),
        DataSet(
            name="korean-heldout",
            summary="60 more texts of the same kind, 61 kB.",
            source=source,
            licence="Apache-2.0",
            files=lambda: [DATA / "korean-heldout.jsonl"],
        ),
    ]
