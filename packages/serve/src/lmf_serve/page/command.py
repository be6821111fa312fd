"""The command ``lmf ui``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from lmf import ConfigError, LmfError, Plugins, option

from ..command import listening
from ..settings import KEY_VARIABLE, SHORTEST_KEY, is_local, key_of

INSTALL = "pip install 'lmf-serve[ui]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """How the page listens."""

    host: str = option("127.0.0.1", "Address to listen on; one that others can reach needs a key.")
    port: int = option(7860, "Port to listen on; 0 for any that is free.", min=0, max=65535)
    api_key: str | None = option(
        None,
        f"Key to log in with, at least {SHORTEST_KEY} characters; {KEY_VARIABLE} keeps it off the command line.",
    )


def ui(page: Page) -> None:
    """Show a page in the browser: talk to models, train, evaluate and export them.

    Whoever can use the page can start commands of lmf on this machine.
    """
    if importlib.util.find_spec("gradio") is None:
        raise LmfError(f"The page needs Gradio: {INSTALL}")
    key = key_of(page.api_key)
    if key is None and not is_local(page.host):
        raise ConfigError(
            f"--host {page.host} lets others than this machine in, and the page can start commands: give --api-key or "
            f"{KEY_VARIABLE}."
        )
    with listening(page.host, page.port) as found:
        from .run import run  # Gradio is imported here

        run(Plugins(), key, is_local(page.host), found)
