"""``lmf serve``: a model behind OpenAI's HTTP API, and ``lmf ui``: a page to train it and to talk to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmf import Command, hookimpl


def build_serve() -> Callable[..., Any]:
    from .command import serve

    return serve


def build_ui() -> Callable[..., Any]:
    from .page.command import ui

    return ui


@hookimpl
def lmf_commands() -> list[Command]:
    return [
        Command(name="serve", summary="Answer over HTTP, as OpenAI's API does.", build=build_serve),
        Command(name="ui", summary="Train, talk to and export models in the browser.", build=build_ui),
    ]
