"""``lmf launch``: the same command in several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from lmf import Plugins
from lmf.parallel.launch import Launch
from lmf.parallel.launch import launch as start


def launch(plugins: Plugins) -> Callable[..., None]:
    """Return the command."""

    def run(
        processes: Launch,
        arguments: Annotated[list[str] | None, typer.Argument(metavar="-- OBJECTIVE METHOD [FLAGS]...")] = None,
    ) -> None:
        """Start a run in one process for each device: lmf launch --devices 2 -- train lora --data ...

        On several machines, start it on each of them, with its --node-rank.
        """
        start(arguments or [], processes)

    return run
