"""A server under load, beside ``transformers serve``: the same model, the same requests, on the same machine.

Usage: serve.py [--streams N] [--tokens N] [--models tiny real] [--soak MINUTES] [--results FILE]

Each server is a fresh process that has the machine to itself. For a random tiny Llama and for SmolLM2-135M-Instruct
(fp32, CPU), greedy, over HTTP:

- idle: seconds to the first text of a stream, one after the other, the median of 9
- load: so many streams at a time; replies that fail, those that are not the text of the same request alone, tokens per
  second of all together, and seconds to the first text (median and slowest)
- dropped: 200 streams and 200 plain requests (20 and 20 of the real model) whose clients go away; how much the resident
  set grew, and the first text of the next request beside idle
- end: SIGTERM with a stream in progress; seconds until the process is gone, and how the stream ended

With --soak, LMF's server gets streams for so many minutes, a third of them dropped, and the slope of its resident set
is told. A figure that a server cannot give is told as such, not left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
TOPICS = ("the sea", "a red fox", "Paris", "the number seven", "rain", "an old clock", "bread", "the moon")
DROPS = {"tiny": 200, "real": 20}  # streams, and as many plain requests; a server that writes on takes long
TOOLS = {  # the command, and its flags behind the model
    "lmf serve": ["lmf"],
    "transformers serve": ["transformers", "--device", "cpu"],
    "transformers serve --continuous-batching": ["transformers", "--device", "cpu", "--continuous-batching"],
}
PATH = "/v1/chat/completions"


@dataclass
class Told:
    """What came of a stream.

    Attributes:
        text: What it said.
        first: Seconds until its first text.
        error: What went wrong, or "".
        last: Its last event.
    """

    text: str = ""
    first: float = 0.0
    error: str = ""
    last: str = ""


class Running:
    """A server in a process of its own.

    Args:
        command: What starts it.
        model: What its requests call the model.
    """

    def __init__(self, command: list[str], model: str, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.model = model
        self.log = (folder / "server.log").open("w+")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], stdout=self.log, stderr=self.log, env=environment
        )
        self.url = f"http://127.0.0.1:{self.port}"
        deadline = time.monotonic() + 300
        while True:
            try:
                httpx.get(f"{self.url}/health", timeout=2)
                return
            except httpx.HTTPError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.log.seek(0)
                    raise RuntimeError(self.log.read()[-2000:]) from None
                time.sleep(0.2)

    def asked(self, number: int, tokens: int) -> dict[str, Any]:
        text = f"Tell me {number + 3} things about {TOPICS[number % len(TOPICS)]}. " + "Be exact. " * (number % 7)
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }

    async def stream(self, http: httpx.AsyncClient, asked: dict[str, Any]) -> Told:
        told, began = Told(), time.monotonic()
        try:
            async with http.stream("POST", PATH, json=asked) as answer:
                if answer.status_code != 200:
                    told.error = f"{answer.status_code} {(await answer.aread())[:200]!r}"
                    return told
                async for line in answer.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    told.last = line
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        continue
                    value = json.loads(data)
                    if "error" in value:
                        told.error = str(value["error"])[:200]
                    for choice in value.get("choices", ()):
                        text = choice["delta"].get("content") or ""
                        if text and not told.text:
                            told.first = time.monotonic() - began
                        told.text += text
        except httpx.HTTPError as error:
            told.error = told.error or f"{type(error).__name__} {error}"
        return told

    def streams(self, count: int, tokens: int, at_once: bool) -> tuple[list[Told], float]:
        """Return what came of so many streams, and the seconds they took."""

        async def all_of_them() -> list[Told]:
            limits = httpx.Limits(max_connections=count)
            async with httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits) as http:
                asked = [self.asked(number, tokens) for number in range(count)]
                if at_once:
                    return await asyncio.gather(*(self.stream(http, each) for each in asked))
                return [await self.stream(http, each) for each in asked]

        began = time.monotonic()
        return asyncio.run(all_of_them()), time.monotonic() - began

    def idle(self) -> float:
        """Return the seconds to the first text of a short stream."""
        return statistics.median(told.first for told in self.streams(9, 2, at_once=False)[0])

    def drop(self, count: int, tokens: int) -> None:
        """Send so many streams and plain requests, and go away."""
        for number in range(2 * count):
            body = json.dumps({**self.asked(number, tokens), "stream": number % 2 == 0}).encode()
            head = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"]
            with socket.create_connection(("127.0.0.1", self.port)) as dropped:
                dropped.sendall("\r\n".join([f"POST {PATH} HTTP/1.1", *head, "", ""]).encode() + body)
                time.sleep(0.005 * (number % 3))

    def resident(self) -> float:
        """Return the MiB of memory that the process has."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def end(self, tokens: int) -> tuple[float, str]:
        """Return the seconds from SIGTERM in a stream to the end of the process, and the last event."""
        began: list[float] = []

        async def cut() -> Told:
            async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
                reading = asyncio.create_task(self.stream(http, self.asked(0, tokens)))
                await asyncio.sleep(1.0)
                self.process.send_signal(signal.SIGTERM)
                began.append(time.monotonic())
                return await reading

        told = asyncio.run(cut())
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            return float("inf"), told.last[:100]
        return time.monotonic() - began[0], told.error or told.last[:100]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def measure(server: Running, streams: int, tokens: int, drops: int, tokenizer: Any) -> dict[str, Any]:
    """Return the figures of one server."""
    found: dict[str, Any] = {"first text, idle": f"{(idle := server.idle()):.3f} s"}
    many, seconds = server.streams(streams, tokens, at_once=True)
    alone, apart = server.streams(streams, tokens, at_once=False)
    written = [len(tokenizer(told.text, add_special_tokens=False)["input_ids"]) for told in many]
    errors = [told.error for told in many if told.error]
    same = sum(one.text == other.text for one, other in zip(many, alone, strict=True))
    firsts = [told.first for told in many if not told.error]
    found |= {
        "replies that failed": f"{len(errors)} of {streams}" + (f": {errors[0]}" if errors else ""),
        "replies that are those of the same request alone": f"{same} of {streams}",
        "tokens per second, all together": f"{sum(written) / seconds:.1f}",
        "tokens per second, one after the other": f"{sum(written) / apart:.1f}",
        "first text, median": f"{statistics.median(firsts):.2f} s" if firsts else "none came",
        "first text, slowest": f"{max(firsts):.2f} s" if firsts else "none came",
    }
    server.drop(drops // 10, 400)  # what is loaded when it is first used
    time.sleep(2)
    before = server.resident()
    server.drop(drops, 400)
    time.sleep(2)
    found[f"memory after {2 * drops} that went away"] = f"{server.resident() - before:+.1f} MiB"
    try:
        after = server.idle()
        found["first text after them, to idle"] = f"{after / idle:.2f}x"
    except (httpx.HTTPError, statistics.StatisticsError) as error:
        found["first text after them, to idle"] = f"none came: {type(error).__name__}"
    seconds, last = server.end(450)
    found["SIGTERM in a stream: seconds to the end"] = f"{seconds:.1f}"
    found["SIGTERM in a stream: its last event"] = last
    return found


def soak(server: Running, minutes: float) -> str:
    """Return the slope of the resident set under streams, a third of them dropped."""
    points: list[tuple[float, float]] = []
    began = time.monotonic()
    while (now := (time.monotonic() - began) / 60) < minutes:
        server.streams(16, 20, at_once=True)
        server.drop(4, 100)
        points.append((now, server.resident()))
    late = [point for point in points if point[0] > minutes / 4]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope
    return f"{slope:+.3f} MiB per minute, the last {minutes * 3 / 4:.0f} of {minutes:.0f} minutes, {len(points)} rounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--models", nargs="+", choices=("tiny", "real"), default=["tiny", "real"])
    parser.add_argument("--only", nargs="+", choices=tuple(TOOLS), default=list(TOOLS))
    parser.add_argument("--soak", type=float, default=0.0)
    parser.add_argument("--results", type=Path, default=HERE / "results/serve.txt")
    options = parser.parse_args()

    from lmf import Plugins
    from lmf.sources import checkpoints
    from lmf.testing import tiny_checkpoint
    from transformers import AutoTokenizer

    lines = [
        f"{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}",
        f"{options.streams} streams of at most {options.tokens} tokens, greedy, CPU, fp32",
    ]
    bin = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = tiny_checkpoint(folder / "tiny")
        (tiny / "chat_template.jinja").write_text(Plugins().templates["chatml"].jinja())
        models = {"tiny": tiny, "real": checkpoints(Plugins())["smollm2-135m"].folder()}
        for model in options.models:
            path = models[model]
            tokenizer = AutoTokenizer.from_pretrained(path)
            found = {}
            for tool in options.only:
                print(f"{model}: {tool}", file=sys.stderr, flush=True)
                command, *flags = TOOLS[tool]
                called = path.name if command == "lmf" else str(path)
                try:
                    server = Running([str(bin / command), "serve", str(path), *flags], called, folder)
                except RuntimeError as error:
                    found[tool] = {"does not start": str(error).strip().splitlines()[-1]}
                    continue
                try:
                    found[tool] = measure(server, options.streams, options.tokens, DROPS[model], tokenizer)
                finally:
                    server.kill()
                write(options.results, [*lines, *told(model, found)])
            lines += told(model, found)
        if options.soak:
            server = Running([str(bin / "lmf"), "serve", str(tiny)], tiny.name, folder)
            try:
                lines += ["", f"soak, tiny model: {soak(server, options.soak)}"]
            finally:
                server.kill()
    write(options.results, lines)
    print("\n".join(lines))


def told(model: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that tell of a model."""
    lines = ["", f"model: {'a random Llama of 4 layers' if model == 'tiny' else 'SmolLM2-135M-Instruct'}"]
    for tool, figures in found.items():
        lines += ["", f"  {tool}", *(f"    {what:52} {value}" for what, value in figures.items())]
    return lines


def write(file: Path, lines: list[str]) -> None:
    """Write what there is so far: the next server may take long."""
    file.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
