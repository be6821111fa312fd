"""A server from its start to its end."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from lmf import Opening, Plugins
from lmf.generate.opening import start

from .app import Server
from .command import accepting, name_of
from .settings import Serving
from .worker import Worker, engine_thread

GRACE = 5.0  # seconds that replies in progress may still take after a signal; a second signal ends them at once
CLOSING = 3.0  # and then for what is left to be sent
KEPT = 4  # prompts that stay read, for requests that go on from them


def run(model: str, serving: Serving, opening: Opening, plugins: Plugins, listening: socket.socket) -> None:
    """Load a model and answer requests until a signal comes.

    Args:
        model: What ``open_model`` takes.
        serving: The settings of the server.
        opening: How the model is opened.
        plugins: What is installed.
        listening: Where requests come in.
    """
    thread = engine_thread()
    chatter, engine = thread.submit(start, model, plugins, opening, most=serving.parallel, kept=KEPT).result()
    worker = Worker(engine, serving.max_queue, thread)
    server = Server(chatter, worker, serving, serving.name or name_of(model))
    config = uvicorn.Config(
        server.app(),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=int(GRACE + CLOSING),
    )
    print(f"{server.name} answers at {accepting(listening)}/v1; Ctrl-C ends it", flush=True)
    try:
        _Ending(config, worker).run(sockets=[listening])
    finally:
        worker.stop(0)
        worker.join(CLOSING)


class _Ending(uvicorn.Server):
    """Lets replies in progress end after the first signal."""

    def __init__(self, config: uvicorn.Config, worker: Worker):
        super().__init__(config)
        self.worker = worker

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.worker.stop(0 if self.should_exit else GRACE)
        super().handle_exit(sig, frame)
