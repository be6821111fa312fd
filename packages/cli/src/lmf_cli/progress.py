"""A run on the terminal: notes, a progress bar, and the loss before and after."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmf.report import Reporter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text


class Progress(Reporter):
    """Shows a run. Without a terminal the bar becomes a line every ten seconds; of many processes one speaks."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
        self._bar: Bar | None = None
        self._began = self._said = time.monotonic()
        self._first: float | None = None
        self._last: float | None = None
        self._rates: list[tuple[int, float]] = []

    def note(self, text: str) -> None:
        self.console.print(Text(text))

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        width = max(len(name) for name, _ in rows)
        self.note("\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows)]))

    def start(self, done: int, steps: int) -> None:
        self._steps = steps
        if not self.console.is_terminal:
            return
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} tokens/s  left"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=self.console)
        self._task = self._bar.add_task("", total=steps, completed=done, loss="-", rate="-")
        self._bar.start()

    def step(self, entry: Mapping[str, Any]) -> None:
        self._rates = [*self._rates[-9:], (entry["tokens"], entry["tokens"] / max(entry["tokens_per_second"], 1e-9))]
        rate = sum(n for n, _ in self._rates) / sum(t for _, t in self._rates)
        if self._bar:
            self._bar.update(self._task, completed=entry["step"], loss=f"{entry['loss']:.4f}", rate=f"{rate:,.0f}")
        elif time.monotonic() - self._said > 10 or entry["step"] == self._steps:
            self._said = time.monotonic()
            self.note(f"step {entry['step']}/{self._steps}  loss {entry['loss']:.4f}  {rate:,.0f} tokens/s")

    def evaluated(self, entry: Mapping[str, Any]) -> None:
        loss = entry.get("eval_loss")
        told = [f"{name} {value:.4f}" for name, value in entry.items() if name not in ("step", "eval_loss")]
        if loss is not None:
            self._first = loss if self._first is None else self._first
            self._last = loss
            told = [f"held-out loss {loss:.4f} nats per token", *told]
        self.note(f"step {entry['step']}: {', '.join(told)}")

    def sample(self, when: str, prompt: str, reply: str) -> None:
        self.console.print(Text(f"\n{when} training, asked {prompt!r}:", style="bold"))
        self.console.print(Text(reply.strip() + "\n"))

    def end(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def done(self, folder: Path) -> None:
        """Say where the model is and what to do next."""
        if self._first is not None and self._last is not None:
            self.note(f"held-out loss {self._first:.4f} before, {self._last:.4f} after")
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        self.note(f"saved {folder} after {minutes} min {seconds} s")
        self.note(f'next: lmf generate {shlex.quote(str(folder))} "Who are you?"')
