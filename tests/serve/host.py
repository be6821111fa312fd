"""A server for tests: the whole of it, on a socket, in a thread of the test's process."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import torch
import uvicorn
from lmf.encoding.encoder import Encoder
from lmf.generate.engine import Engine
from lmf.generate.opening import Chatter
from lmf.templates.template import Template
from lmf_serve.app import Server
from lmf_serve.command import listening
from lmf_serve.settings import Serving
from lmf_serve.worker import Worker
from replies import TOKENIZER, Rule

NAME = "tiny"
TALK = Template(
    name="talk",
    source="this test",
    user="U: {content}\n",
    system="S: {content}\n",
    assistant="A:",
    reply=" {content}{eos}",
    after_reply="\n",
    stop=("{eos}",),
)


@dataclass
class Hosted:
    """A server that runs."""

    server: Server
    url: str
    key: str | None

    @property
    def worker(self) -> Worker:
        return self.server.worker

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0)

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def chatter_of(model: Any = None, template: Any = TALK) -> Chatter:
    """Something to talk to, without a model if the engine has its own."""
    return Chatter(model, TOKENIZER, Encoder(TOKENIZER, template))


def engine_of(runner: Any, chatter: Chatter, context: int = 400, **options: Any) -> Engine:
    return Engine(runner, TOKENIZER, TOKENIZER.all_special_ids, context, **options)


@contextlib.contextmanager
def hosted(engine: Engine, chatter: Chatter | None = None, **settings: Any) -> Iterator[Hosted]:
    """Run a server."""
    serving = Serving(**settings)
    worker = Worker(engine, serving.max_queue)
    server = Server(chatter or chatter_of(), worker, serving, NAME)
    found = listening("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(server.app(), log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [found]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.005)
    try:
        yield Hosted(server, f"http://127.0.0.1:{found.getsockname()[1]}", serving.key())
    finally:
        worker.stop(0)
        running.should_exit = True
        thread.join(10)
        worker.join(10)
        found.close()


def endless(seconds: float = 0.0) -> Rule:
    """A model that writes the same token for ever, each after some time."""

    def rule(read: list[int]) -> torch.Tensor:
        time.sleep(seconds)
        return torch.nn.functional.one_hot(torch.tensor(40), len(TOKENIZER)).float()

    return Rule(rule)


def dice(ends: float = 0.05) -> Rule:
    """A model that writes any tokens, each a function of all that stands before, and ends at times."""

    def rule(read: list[int]) -> torch.Tensor:
        chance = torch.Generator().manual_seed(hash(tuple(read)) % 2**31)
        logits = torch.rand(len(TOKENIZER), generator=chance)
        if torch.rand(1, generator=chance) < ends:
            logits[TOKENIZER.eos_token_id] = 2
        return logits

    return Rule(rule)
