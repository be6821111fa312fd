"""What a run tells about itself while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Reporter:
    """Gets what a run has to tell. This one is silent; the command line shows a progress bar."""

    def note(self, text: str) -> None:
        """Something worth a line: what was chosen, counted or saved."""

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """An account of something, a name and a value a row."""
        for name, value in rows:
            self.note(f"{title}: {name}: {value}")

    def start(self, done: int, steps: int) -> None:
        """The loop begins after ``done`` of ``steps`` optimizer steps."""

    def step(self, entry: Mapping[str, Any]) -> None:
        """An optimizer step is done; ``entry`` is its line of log.jsonl."""

    def evaluated(self, entry: Mapping[str, Any]) -> None:
        """The held-out loss or benchmarks were measured; ``entry`` is its line of log.jsonl."""

    def sample(self, when: str, prompt: str, reply: str) -> None:
        """The model answered ``--sample``, ``before`` or ``after`` training."""

    def end(self) -> None:
        """The loop has ended, well or not."""


def size(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
