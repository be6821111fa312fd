"""``lmf export``: models for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmf import Command, hookimpl


def build() -> Mapping[str, Any]:
    from . import command

    return {
        "hf": command.hf,
        "gguf": command.gguf,
        "ollama": command.ollama,
        "check": command.check,
        "delta": {"make": command.make_delta, "apply": command.apply_delta},
    }


@hookimpl
def lmf_commands() -> list[Command]:
    return [Command(name="export", summary="Write models for other programs, and check them.", build=build)]
