"""What a checkpoint costs a run: completed before the next step, or in the background.

Usage: saving.py MODEL [--data NAME]

The same 13 steps in float32 with no save between them, with one after each third step that is complete before the next
step, and with these completed in the background; in turn. Printed for each save: how long the training stands still for
it, and how much longer than without it the steps take. What is written goes to the page cache; what is left for the
background is the hashing of the files and the wait for the disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from lmf import Plugins
from lmf.config import make
from lmf.plan import make_plan
from lmf.report import Reporter
from lmf.settings import RunSettings
from lmf.training import checkpoint, loop
from transformers.utils import logging

PLUGINS = Plugins()
STEPS, EVERY, TURNS = 13, 3, 3
SAVES = (STEPS - 1) // EVERY  # before the last step
METHODS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"rank": 8}}
WITHOUT = "no save"
WAYS = {WITHOUT: (STEPS, 0), "at once": (EVERY, 1 << 62), "in the background": (EVERY, 0)}  # and what counts as large


class Clock(Reporter):
    """Keeps when each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, entry: Mapping[str, Any]) -> None:
        self.times.append(time.perf_counter())


def timed(owner: Any, name: str, seconds: dict[str, list[float]]) -> None:
    """Have a function note how long it takes."""
    work: Callable[..., Any] = getattr(owner, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            seconds[name].append(time.perf_counter() - begin)

    setattr(owner, name, measured)


def measure(method: str, options: argparse.Namespace, folder: Path, seconds: dict[str, list[float]]) -> None:
    took: dict[str, list[float]] = defaultdict(list)  # all steps but the first, which also makes the optimizer's state
    still: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(list)
    size = 0
    for turn in range(TURNS):
        for way, (every, large) in WAYS.items():
            loop.LARGE = large
            clock, output = Clock(), folder / f"{method}-{turn}-{way}"
            values = {"model": options.model, "data": [options.data], "output": output, "template": "chatml"}
            values |= {"batch_size": 4, "dtype": "float32", "learning_rate": 1e-5, "max_tokens": 512}
            values |= {"steps": STEPS, "save_every": every, "keep": 1}
            seconds.clear()
            chosen = make(PLUGINS.methods[method].options, dict(METHODS[method]))
            loop.train(make_plan(PLUGINS, "train", method, make(RunSettings, values), None, chosen), clock)
            took[way].append(clock.times[-1] - clock.times[0])
            if way != WITHOUT:
                still[way] += seconds["_save"][:SAVES]
                for name in ("write", "file_hash", "sync"):
                    parts[name].append(sum(seconds[name]) / len(seconds["write"]))
            newest, _ = checkpoint.find(output)
            assert newest
            size = sum(path.stat().st_size for path in newest.iterdir())
    shown = ", ".join(f"{name} {spread(found)}" for name, found in parts.items())
    print(f"{method}, {size / 1e6:,.0f} MB: {shown}; {STEPS - 1} steps without a save {spread(took[WITHOUT])}")
    for way in still:
        longer = [(one - other) / SAVES for one, other in zip(took[way], took[WITHOUT], strict=True)]
        print(f"  {way:20} stands still for {spread(still[way])}, takes longer by {spread(longer)}", flush=True)


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description="What a checkpoint costs a run.")
    parser.add_argument("model", help="what --model takes")
    parser.add_argument("--data", default="cards", help="what --data takes (cards)")
    options = parser.parse_args()
    logging.disable_progress_bar()
    names = ("torch", "transformers", "safetensors")
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    print(", ".join(f"{name} {version(name)}" for name in names) + f", {options.model}")
    print(f"Seconds: medians of {TURNS} runs (least to most); of each part, for one save\n")
    seconds: dict[str, list[float]] = defaultdict(list)
    for owner, name in ((loop._Run, "_save"), *((checkpoint, name) for name in ("write", "file_hash", "sync"))):
        timed(owner, name, seconds)
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk; /tmp may be in memory
        for method in METHODS:
            measure(method, options, Path(folder), seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
