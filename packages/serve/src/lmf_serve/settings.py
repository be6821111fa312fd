"""The settings of a server."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from lmf import ConfigError, option

KEY_VARIABLE = "LMF_API_KEY"
SHORTEST_KEY = 16  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How a server listens, and what it allows."""

    host: str = option("127.0.0.1", "Address to listen on; one that others can reach needs a key.")
    port: int = option(8000, "Port to listen on; 0 for any that is free.", min=0, max=65535)
    api_key: str | None = option(
        None,
        f"Key that every request must bring, at least {SHORTEST_KEY} characters; {KEY_VARIABLE} keeps it off "
        "the command line.",
    )
    allow_anyone: bool = option(False, "Let others than this machine in without a key.")
    name: str | None = option(None, "What requests call the model; the name of its folder by default.")
    max_tokens: int = option(1024, "Most tokens of a reply.", min=1)
    max_queue: int = option(128, "Most replies that wait to be begun; further requests are told to come again.", min=0)
    max_body: int = option(8, "Largest request in MiB.", min=1, max=1024)
    parallel: int = option(32, "Most replies that are written at a time.", min=1, max=1024)
    timeout: float = option(600.0, "Seconds that a reply may take.", above=0)
    predict: bool = option(False, "Answer POST /predict, too, as LMFlow's server did.")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_local(self.host)

    def key(self) -> str | None:
        """Return the key that requests must bring.

        Raises:
            ConfigError: It is too short, or there is none where one is needed.
        """
        key = key_of(self.api_key)
        if key is None and not self.local and not self.allow_anyone:
            raise ConfigError(
                f"--host {self.host} lets others than this machine in. Give --api-key or {KEY_VARIABLE}, or "
                "--allow-anyone if everybody may use the model."
            )
        return key


def key_of(given: str | None) -> str | None:
    """Return the key that was given as a flag or else in the environment; None if there is none.

    Raises:
        ConfigError: It is too short, or has what a header cannot.
    """
    key = given if given is not None else os.environ.get(KEY_VARIABLE)
    if key is not None and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key):
        raise ConfigError(
            f"The API key must have at least {SHORTEST_KEY} characters, of those that ASCII can print, no spaces."
        )
    return key


def is_local(host: str) -> bool:
    """Whether an address is one of this machine that no other can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
