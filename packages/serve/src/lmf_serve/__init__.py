"""``lmf serve``: a model behind OpenAI's HTTP API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmf import Command, hookimpl


def build_serve() -> Callable[..., Any]:
    from .command import serve

    return serve


@hookimpl
def lmf_commands() -> list[Command]:
    return [Command(name="serve", summary="Answer over HTTP, as OpenAI's API does.", build=build_serve)]
