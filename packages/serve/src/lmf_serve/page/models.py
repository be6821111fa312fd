"""Models that the page talks to: each behind a ``lmf serve`` of its own, which nobody else has the key to."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from lmf import LmfError, Plugins
from lmf.runs import find_runs, read_run
from lmf.sources import checkpoints

from ..settings import KEY_VARIABLE
from .jobs import Job, Jobs

_ADDRESS = re.compile(r"answers at (http://\S+/v1)")
LOADING = 600.0  # seconds that a model may take to be loaded
MOST = 4096  # tokens of a reply


class Served:
    """A model that answers.

    Args:
        jobs: Where its process belongs.
        name: What ``lmf serve`` takes.
    """

    def __init__(self, jobs: Jobs, name: str):
        self.name = name
        self._key = secrets.token_urlsafe(32)
        arguments = ["serve", name, "--port", "0", "--name", "model", "--max-tokens", str(MOST)]
        self._job: Job = jobs.start(arguments, {KEY_VARIABLE: self._key})
        self._address = ""

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            LmfError: It cannot be loaded.
        """
        end = time.monotonic() + LOADING
        while not self._address:
            if time.monotonic() > end:
                self.close()
                raise LmfError(f"it did not answer within {LOADING:g} seconds")
            if not self._job.running:
                said = [line for line in self._job.said.splitlines() if line.strip()]
                raise LmfError("\n".join(said[-3:]).removeprefix("error: "))
            if found := _ADDRESS.search(self._job.said):
                self._address = found[1]
            time.sleep(0.05)

    async def reply(self, messages: Sequence[Mapping[str, str]], drawing: Mapping[str, Any]) -> AsyncIterator[str]:
        """Yield the whole text of a reply, each time that it grows.

        Args:
            messages: The conversation.
            drawing: Settings of the reply, by their names in OpenAI's API.

        Raises:
            LmfError: The server refuses it, or is gone.
        """
        body = {"model": "model", "messages": list(messages), "stream": True, **drawing}
        headers = {"Authorization": f"Bearer {self._key}"}
        text = ""
        try:
            async with (
                httpx.AsyncClient(timeout=None, trust_env=False) as client,
                client.stream("POST", f"{self._address}/chat/completions", json=body, headers=headers) as answer,
            ):
                if answer.status_code != 200:
                    raise LmfError(f"{self.name}: {json.loads(await answer.aread())['error']['message']}")
                async for line in answer.aiter_lines():
                    event = line.removeprefix("data: ")
                    if not event or event == "[DONE]":
                        continue
                    told = json.loads(event)
                    if "error" in told:
                        raise LmfError(f"{self.name}: {told['error']['message']}")
                    if new := told["choices"][0]["delta"].get("content"):
                        text += new
                        yield text
        except httpx.HTTPError as error:
            raise LmfError(f"{self.name} does not answer any more: {type(error).__name__}. Load it again.") from error

    def close(self) -> None:
        """Unload it."""
        self._job.close(patience=10)


def known(plugins: Plugins) -> list[str]:
    """Return the models that have a name or lie in the current folder: finished runs first."""
    here = Path()
    runs = [str(path) for path in find_runs(here) if _finished(path)]
    folders = [str(path.parent) for path in sorted(here.glob("*/config.json")) if str(path.parent) not in runs]
    return [*runs, *folders, *sorted(checkpoints(plugins))]


def _finished(run: Path) -> bool:
    try:
        return read_run(run).get("status") == "finished"
    except LmfError:  # a damaged record is no model to offer; `lmf runs list` tells of it
        return False
