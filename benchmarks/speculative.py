"""Speculative decoding: speed against the number of guesses, beside plain decoding in the same process.

Usage: speculative.py [--tokens N] [--deep FACTOR] [--results FILE]

One reply at a time, greedy, on the CPU, in fp32. Two ways to guess:

- lookup, on SmolLM2-135M-Instruct itself: prompts that ask to copy a text, and prompts that ask for something new
- a smaller model. No two real models with the same tokens and different sizes are at hand offline, so the target is
  SmolLM2-135M made deeper by layers that change nothing (their output projections are 0): it writes what SmolLM2-135M
  writes and costs FACTOR times as much. The draft is SmolLM2-135M, as it is (all guesses are right: the most that any
  draft can bring), and with noise in its weights, which makes some of its guesses wrong, as those of a real one are

Each figure is tokens per second with guesses divided by that without, both measured in turns on the same prompts, and
the share of the guesses that were kept. What is written must be the same; it is compared, and the script fails if not.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lmf import Message, Plugins, Sampling
from lmf.generate.caches import runner_for
from lmf.generate.drafts import Drafting, Lookup, Smaller
from lmf.generate.opening import Chatter, open_model
from lmf.models import quiet

HERE = Path(__file__).parent
GUESSES = (1, 2, 3, 5, 8, 10)
NOISE = (0.0, 0.02, 0.05)  # standard deviation, in those of each weight matrix
TEXT = (
    "The lighthouse keeper walked down the winding stairs, lit the small lamp by the door, and wrote the weather of "
    "the day into the book: wind from the north-west, four sails on the horizon, and rain before the evening."
)
COPY = (
    f"Repeat this text word for word, and write nothing else:\n{TEXT}",
    f"Correct the spelling of this text. Write the whole text again:\n{TEXT}",
)
NEW = ("Why is the sky blue?", "Write a short story about a fox.")


class Decoding:
    """Writes replies to prompts, and takes the time.

    Args:
        chatter: The model.
        runner: Runs it.
        prompts: What it is asked.
        tokens: The most tokens of each reply.
    """

    def __init__(self, chatter: Chatter, runner: Any, prompts: Sequence[str], tokens: int):
        self.chatter, self.runner, self.tokens = chatter, runner, tokens
        self.ids = [chatter.ids([Message("user", prompt)]) for prompt in prompts]

    def run(self, draft: Drafting | None, guesses: int) -> tuple[list[list[int]], float, float]:
        """Return the ids of the replies, tokens per second, and the share of the guesses that were kept."""
        engine = self.chatter.engine(self.runner, draft=draft, guesses=guesses, kept=0)
        written, seconds = [], 0.0
        for ids in self.ids:
            (reply,) = engine.submit(ids, Sampling(max_tokens=self.tokens))
            engine.step()  # reads the prompt
            began = time.perf_counter()
            engine.finish([reply])
            seconds += time.perf_counter() - began
            written.append(reply.ids)
        count = sum(len(each) - 1 for each in written)
        return written, count / seconds, engine.right / max(1, engine.drafted)

    def rows(self, draft: Drafting) -> list[str]:
        """Return a line for each number of guesses."""
        lines = []
        for guesses in GUESSES:
            plain, slow, _ = self.run(None, 1)
            drafted, fast, kept = self.run(draft, guesses)
            if drafted != plain:
                raise SystemExit(f"with {guesses} guesses something else was written")
            lines.append(f"    {guesses:7}   {fast / slow:5.2f}x   {kept:6.1%}   {slow:6.1f}   {fast:6.1f}")
        return lines


def deeper(model: Any, factor: int) -> Any:
    """Return a model that writes the same with so many times as many layers."""
    deep = copy.deepcopy(model)
    layers = deep.model.layers
    idle = copy.deepcopy(layers[0])
    with torch.no_grad():
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    count = len(layers)
    for number in range(count, factor * count):
        layer = copy.deepcopy(idle)
        layer.self_attn.layer_idx, layer.self_attn.config = number, deep.config
        layers.append(layer)
    deep.config.num_hidden_layers = len(layers)
    return deep


def noisy(model: Any, noise: float) -> Any:
    """Return a model with noise in its matrices."""
    other = copy.deepcopy(model)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.model.layers.parameters():
            if parameter.ndim == 2 and noise:
                parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=chance))
    return other


def drafting(model: Any, width: int) -> Drafting:
    runner = runner_for(model)
    return lambda sampling, chance: Smaller(runner, sampling, chance, width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--deep", type=int, default=4)
    parser.add_argument("--results", type=Path, default=HERE / "results/speculative.txt")
    options = parser.parse_args()
    quiet()
    chatter = open_model("smollm2-135m", Plugins())
    model: Any = chatter.model
    lookup: Callable[..., Any] = lambda sampling, chance: Lookup()  # noqa: E731
    head = "    guesses   speed    kept     tokens/s without, with"
    lines = [
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {version('torch')}, transformers {version('transformers')}",
        f"replies of at most {options.tokens} tokens, one at a time, greedy, fp32; written the same in all cases",
    ]
    runner = runner_for(model)
    for name, prompts in (("asked to copy", COPY), ("asked for something new", NEW)):
        lines += ["", f"  SmolLM2-135M, lookup, {name}", head]
        lines += Decoding(chatter, runner, prompts, options.tokens).rows(lookup)
        print("\n".join(lines[-8:]), flush=True)
    drafts = {noise: noisy(model, noise) for noise in NOISE}
    target = Chatter(deeper(model, options.deep), chatter.tokenizer, chatter.encoder)
    deep = Decoding(target, runner_for(target.model), NEW, options.tokens)
    for noise, draft in drafts.items():
        name = f"a draft of 1/{options.deep} of the layers" + (f", noise {noise:g}" if noise else ", always right")
        lines += ["", f"  SmolLM2-135M made {options.deep} times as deep, {name}", head]
        lines += deep.rows(drafting(draft, model.config.vocab_size))
        print("\n".join(lines[-8:]), flush=True)
    options.results.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
