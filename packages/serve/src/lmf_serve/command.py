"""The command ``lmf serve``."""

from __future__ import annotations

import socket
from pathlib import Path

from lmf import LmfError, Opening, Plugins

from .settings import Serving


def serve(model: str, server: Serving, opening: Opening) -> None:
    """Answer over HTTP, as OpenAI's API does: /v1/chat/completions, /v1/completions, /v1/models.

    MODEL is the output folder of a run, or anything that --model takes.
    """
    from lmf.plan import check_opening

    plugins = Plugins()
    server.key()
    check_opening(model, opening, plugins)
    with listening(server.host, server.port) as found:  # before the model is loaded, which takes long
        from .run import run  # torch is imported here

        run(model, server, opening, plugins, found)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket for an address.

    Raises:
        LmfError: There is no such address, or the port is taken.
    """
    try:
        # asyncio sends at once (TCP_NODELAY) only where the protocol is named; else answers wait for the client's ACK
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LmfError(f"--host {host} is no address: {error.strerror}.") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise LmfError(
            f"--host {host} --port {port} cannot be used: {error.strerror}. Choose another --port."
        ) from None
    return found


def accepting(found: socket.socket) -> str:
    """Have a socket accept connections, and return its address: whoever reads it may connect."""
    found.listen()
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def name_of(model: str) -> str:
    """Return what requests call a model: the name of its folder or file, or the name that it was given."""
    path = Path(model).expanduser()
    if path.is_file():
        return path.stem
    return path.resolve().name if path.is_dir() else model
